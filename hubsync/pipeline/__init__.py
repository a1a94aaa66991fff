"""A small pipeline: steps that run at the same time over bounded channels, and a checkpointer that brings what was
generated so far to a dataset while the rest is being generated.

    with Pipeline(name="rollouts") as pipeline:
        generate = Generate(input_batch_size=60)
        checkpoint = HuggingFaceHubCheckpointer(repo_id="user/rollouts", input_batch_size=50)
        generate >> checkpoint
    distiset = pipeline.run(dataset=dataset)
"""

from hubsync.pipeline.checkpointer import HuggingFaceHubCheckpointer
from hubsync.pipeline.distiset import Distiset
from hubsync.pipeline.graph import (
    GeneratorStep,
    GlobalStep,
    Pipeline,
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
