"""Building a pipeline: what can't work is refused as early as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hubsync.pipeline import GeneratorStep, HuggingFaceHubCheckpointer, Pipeline, PipelineError, Step, StepInput

if TYPE_CHECKING:
    from nowhere import StepOutput  # type: ignore[import-not-found]


class Same(Step):
    factor: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821
    bare: Nowhere  # type: ignore[name-defined]  # noqa: F821

    def process(self, *inputs: StepInput) -> StepOutput:
        yield from inputs


class Count(GeneratorStep):
    def process(self, offset: int = 0):  # type: ignore[no-untyped-def]
        yield [{"n": n} for n in range(offset, 10)]


def test_steps_are_named_and_connected_without_evaluating_annotations() -> None:
    with Pipeline(name="p") as pipeline:
        a, b, c, d = Same(), Same(name="second", factor=2, bare=3), Same(), Same()
        assert a >> [b, c] == [b, c]
        assert [b, c] >> d is d
    assert [step.name for step in pipeline.steps] == ["same_0", "second", "same_1", "same_2"]
    assert (b.factor, b.bare) == (2, 3)
    assert d.predecessors == [b, c]
    assert pipeline.leaves == [d]


def test_an_impossible_connection_is_refused_immediately() -> None:
    with Pipeline() as pipeline:
        a, b, c = Same(), Same(), Same()
        a >> b >> c
        with pytest.raises(PipelineError, match="cycle"):
            c >> a
        with pytest.raises(PipelineError, match="cycle"):
            a >> a
        with pytest.raises(PipelineError, match="twice"):
            a >> b
        with pytest.raises(PipelineError, match="generates rows"):
            a >> Count()
        with pytest.raises(PipelineError, match="no field 'temperature'"):
            Same(temperature=1)
        with pytest.raises(PipelineError, match="at least 1"):
            Same(input_batch_size=0)
        with pytest.raises(PipelineError, match="'same_0'"):
            Same(name="same_0")
    with pytest.raises(PipelineError, match="outside a pipeline"):
        Same()
    with Pipeline(), pytest.raises(PipelineError, match="both must be steps of this pipeline"):
        Same() >> a
    with pytest.raises(PipelineError, match="gets no rows"):
        pipeline.run()
    with pytest.raises(PipelineError, match="no steps"):
        Pipeline().run(dataset=[])
    with pytest.raises(PipelineError, match="name"):
        Pipeline(name="../x")


def test_a_second_checkpointer_on_the_same_branch_is_refused() -> None:
    with Pipeline():
        HuggingFaceHubCheckpointer(repo_id="user/rows")
        HuggingFaceHubCheckpointer(repo_id="user/others")
        HuggingFaceHubCheckpointer(repo_id="user/rows", revision="side")
        with pytest.raises(PipelineError, match="two checkpointers"):
            HuggingFaceHubCheckpointer(repo_id="user/rows")
        with pytest.raises(ValueError, match="repo id"):
            HuggingFaceHubCheckpointer(repo_id="rows")
