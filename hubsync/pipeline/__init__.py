"""A small pipeline whose steps run concurrently, with a checkpointer that uploads rows while later ones are generated.

    with Pipeline(name="rollouts") as pipeline:
        generate = Generate(input_batch_size=60)
        checkpoint = HuggingFaceHubCheckpointer(repo_id="user/rollouts", input_batch_size=50)
        generate >> checkpoint
    distiset = pipeline.run(dataset=dataset)

``graph`` is the pipeline that users build from ``steps``. ``runner`` runs it: rows flow from step to step through
``channels``, ``blocking`` calls user code in threads, and the last steps' rows end up in ``distiset``. ``durable`` is
what the runner knows of the ``checkpointer``, which uploads through ``checkpoint_core``.
"""

from hubsync.pipeline.checkpointer import HuggingFaceHubCheckpointer
from hubsync.pipeline.distiset import Distiset
from hubsync.pipeline.graph import Pipeline
from hubsync.pipeline.steps import (
    GeneratorStep,
    GlobalStep,
    PipelineError,
    Step,
    StepError,
    StepInput,
    StepOutput,
)

__all__ = [
    "Distiset",
    "GeneratorStep",
    "GlobalStep",
    "HuggingFaceHubCheckpointer",
    "Pipeline",
    "PipelineError",
    "Step",
    "StepError",
    "StepInput",
    "StepOutput",
]
