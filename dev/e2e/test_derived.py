"""What stands behind the journal is derived: drop it, start, and the account is whole again."""
import json
import shutil

from platform_under_test import until

CONFIG = """
[journal]
segment_bytes = 1048576
preallocate_bytes = 262144
retention_bytes = 2097152

[tsdb]
flush_after_seconds = 1
"""
BATCH = json.dumps([{"note": "x" * 500, "number": n} for n in range(1_000)]).encode()

BATCHES = 10


def test_the_ledger_balances_after_the_store_is_dropped_and_the_journal_was_cut(platforms):
    platform = platforms(CONFIG).start()
    token = platform.add_device("pump")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    for _ in range(BATCHES):
        status, _, body = platform.request("POST", "/v1/telemetry", BATCH, headers=headers)
        assert status == 200, body
    sent = BATCHES * 1_000
    until("retention takes a segment", lambda: "retention removed a segment" in platform.log())
    assert platform.settle()["stored"] == sent
    assert platform.stop()[0] == 0

    shutil.rmtree(platform.data / "tsdb")
    platform.start()
    stored = platform.settle()["stored"]
    gone = platform.ledger()["gone"]
    assert gone > 0 and stored + gone == sent, (stored, gone, sent)
    # Nobody could tell now: it is remembered.
    assert platform.stop()[0] == 0
    platform.start()
    assert platform.settle()["stored"] == stored and platform.ledger()["gone"] == gone
