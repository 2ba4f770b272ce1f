"""Hold a pass of one's own to what every pass owes: the suite that the passes of onnxcomp are held to.

    from onnxcomp.testing import check_pass

    def test_my_pass() -> None:
        check_pass(ClipWeights)

Which checks run follows from what the class declares. Models are drawn, the same every time: all kinds of weights,
layers, versions and leftovers of exporters. With pytest a test for each check says more at once:

    @pytest.mark.parametrize(("name", "check"), checks_of(ClipWeights))
    def test_my_pass(name: str, check: Callable[[], None]) -> None:
        check()

Nothing here needs pytest, and nothing of onnxcomp needs this package.
"""

from onnxcomp.testing.applying import Applied, apply
from onnxcomp.testing.suite import check_pass, checks_of
from onnxcomp.testing.trial import Sample, Trial, drawn

__all__ = ["Applied", "Sample", "Trial", "apply", "check_pass", "checks_of", "drawn"]
