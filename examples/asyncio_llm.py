"""Get completions from an OpenAI-compatible server, many at a time, and upload each as soon as it arrives.

    python examples/openai_stand_in.py --port 8000 &
    python examples/asyncio_llm.py user/completions --base-url http://127.0.0.1:8000 --rows 200

Completions arrive in any order, but an offset means that everything up to it is stored. So a row that arrives early
waits for the rows before it. A restarted job asks for nothing up to its offset.
"""

import argparse
import os
import random

import anyio
import httpx

from hubsync import AsyncUploader

MAX_ATTEMPTS = 8
MAX_AHEAD = 4  # prompts in progress per concurrent request: a slow one delays, or a crash repeats, at most that many


class InOrder:
    """Put rows in the order of their prompts, whatever order they arrive in."""

    def __init__(self, up: AsyncUploader, first: int, max_ahead: int) -> None:
        self._up = up
        self._next = first
        self._early: dict[int, dict[str, object]] = {}
        self._turn = anyio.Lock()
        self.places = anyio.Semaphore(max_ahead)  # acquired per prompt, released when its row is put

    async def put(self, n: int, row: dict[str, object]) -> None:
        self._early[n] = row
        async with self._turn:
            while self._next in self._early:
                await self._up.put([self._early.pop(self._next)], offset=self._next, source="prompts")
                self._next += 1
                self.places.release()


async def complete(client: httpx.AsyncClient, model: str, prompt: str) -> str:
    """Return one completion. Retry if the server is busy (429), fails (5xx) or can't be reached."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    for attempt in range(MAX_ATTEMPTS):
        wait = random.uniform(0, min(30, 0.25 * 2**attempt))  # jitter, so that requests do not return all at once
        try:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != 429 and response.status_code < 500:
                response.raise_for_status()  # a wrong key or model: a retry would not help
                return response.json()["choices"][0]["message"]["content"]
            wait = max(wait, float(response.headers.get("Retry-After", 0)))
        except httpx.TransportError:
            pass
        await anyio.sleep(wait)
    raise RuntimeError(f"no answer to {prompt!r} in {MAX_ATTEMPTS} attempts")


async def run(repo: str, base_url: str, model: str, prompts: list[str], at_once: int) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    limiter = anyio.CapacityLimiter(at_once)
    async with AsyncUploader(repo) as up, httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120) as client:
        done = await up.offset("prompts")
        first = 0 if done is None else done + 1
        in_order = InOrder(up, first, MAX_AHEAD * at_once)

        async def answer(n: int) -> None:
            async with limiter:
                completion = await complete(client, model, prompts[n])
            await in_order.put(n, {"id": n, "prompt": prompts[n], "completion": completion, "model": model})

        async with anyio.create_task_group() as tasks:
            for n in range(first, len(prompts)):
                await in_order.places.acquire()
                tasks.start_soon(answer, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/completions")
    parser.add_argument("--base-url", required=True, help="URL of the server, without /v1")
    parser.add_argument("--model", default="my-model")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8, help="concurrent requests; may differ in each run")
    args = parser.parse_args()
    prompts = [f"What is {n} times {n}?" for n in range(args.rows)]
    anyio.run(run, args.repo, args.base_url, args.model, prompts, args.at_once)


if __name__ == "__main__":
    main()
