"""Whose decision a version is verified by."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from tasks.register.version_tags import Version, judged_as

V1 = Version(1, 0, True, "one", "run-1", "models:/m-1", datetime.now(UTC), None, "")
V2 = replace(V1, number=2, succeeds=1, digest="two", run_id="run-2")
BACK = replace(V1, number=3, succeeds=2, run_id="run-3", rollback_to=1)
AGAIN = replace(V2, number=4, succeeds=3, run_id="run-4")
BACK_AGAIN = replace(BACK, number=5, succeeds=4, run_id="run-5", rollback_to=1)
FORTH = replace(AGAIN, number=6, succeeds=5, run_id="run-6", rollback_to=4)
EVERY = (V1, V2, BACK, AGAIN, BACK_AGAIN, FORTH)


def test_a_model_that_is_promoted_again_after_a_rollback_has_its_own_decision() -> None:
    """It was judged against the rollback's version, not against the champion of its first promotion."""
    assert judged_as(AGAIN, EVERY) is AGAIN
    assert judged_as(V2, EVERY) is V2


def test_a_rollback_has_the_decision_of_the_model_that_it_put_back() -> None:
    """Of several promotions of that model, the latest before it; its own run where all were deleted."""
    assert judged_as(BACK, EVERY) is V1
    assert judged_as(FORTH, EVERY) is AGAIN
    assert judged_as(BACK, (V2, BACK)) is BACK
