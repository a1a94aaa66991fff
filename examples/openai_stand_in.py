"""A stand-in for an OpenAI-compatible server, to try `asyncio_llm.py` without a model.

    python examples/openai_stand_in.py --port 8000

The same prompt always gets the same answer, after a random time, so that answers overtake each other. Every tenth
request is refused with 429. `GET /asked` returns how often each prompt was answered.
"""

import argparse
import random
from collections import Counter
from itertools import count

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LATENCY_S = 0.1  # on average


def app() -> Starlette:
    asked: Counter[str] = Counter()
    requests = count(1)

    async def complete(request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        if next(requests) % 10 == 0:
            error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, status_code=429, headers={"Retry-After": "0"})
        asked[prompt] += 1
        rng = random.Random(prompt)
        await anyio.sleep(rng.uniform(0, 2 * LATENCY_S))
        message = {"role": "assistant", "content": f"{prompt} Let me think: {rng.randrange(10_000)}."}
        return JSONResponse(
            {
                "id": f"chatcmpl-{rng.getrandbits(64):016x}",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }
        )

    async def report(request: Request) -> Response:
        return JSONResponse(asked)

    return Starlette(
        routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/asked", report, methods=["GET"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    args = parser.parse_args()
    uvicorn.run(app(), port=args.port, access_log=False)


if __name__ == "__main__":
    main()
