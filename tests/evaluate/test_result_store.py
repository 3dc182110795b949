"""Results of an evaluation on disk: finished parts are reused, damaged lines are not."""

import numpy as np

from hf_tfm.evaluate.result_store import PARTS_FILE, ResultStore


def test_finished_parts_are_not_recomputed(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"hits": np.int64(3)}

    for _ in range(2):
        results = ResultStore(tmp_path, {"name": "m"})
        assert results.compute_once({"task": "pairs", "group": "x"}, compute) == {"hits": 3}
        assert results.compute_once({"task": "pairs", "group": "y"}, compute) == {"hits": 3}
    assert len(calls) == 2
    assert ResultStore(tmp_path, {"name": "other"}).compute_once({"task": "pairs", "group": "x"}, compute) == {
        "hits": 3
    }
    assert len(calls) == 3, "figures of another model were taken for this one's"


def test_a_torn_line_loses_one_part(tmp_path):
    results = ResultStore(tmp_path, {"name": "m"})
    for group in "xyz":
        results.compute_once({"group": group}, lambda: 1)
    parts = tmp_path / PARTS_FILE
    parts.write_bytes(parts.read_bytes()[:-5])
    results = ResultStore(tmp_path, {"name": "m"})
    computed = [results.compute_once({"group": group}, lambda: 2) for group in "xyzw"]
    assert computed == [1, 1, 2, 2]
    assert [
        ResultStore(tmp_path, {"name": "m"}).compute_once({"group": group}, lambda: 3) for group in "xyzw"
    ] == computed
