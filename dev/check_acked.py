#!/usr/bin/env python3
"""Says whether anything acknowledged was lost: compares the senders' records with what is stored.

    check_acked.py --record FILE... --stored FILE.csv

A record has lines `device,first,last,outcome`: the messages first..last of that device ended as acked, refused or
unknown. The stored file is the CSV of a query with the columns `device` and `seq`, and optionally

    temperature  which the sender derived from seq: 20 + (seq mod 1000) / 100
    position     which must grow with seq within a device (the order in which it was stored)

Independent of Dunlin's code on purpose: standard library only. Prints one JSON object; exits with 1 if a rule is broken:

    lost        acked, and not stored                              must be 0
    invented    stored, and never sent                             must be 0
    altered     stored with another temperature than was sent      must be 0
    duplicates  rows beyond the first of a message                 must be 0
    misordered  stored before an earlier message of the device     must be 0
    refused_but_stored                                             must be 0
    unknown_stored / unknown_not_stored: both are right, the sender was never told
"""
import argparse
import bisect
import csv
import json
import sys
from collections import Counter, defaultdict

OUTCOMES = ("acked", "refused", "unknown")


def read_records(paths):
    """device -> sorted list of (first, last, outcome)"""
    runs = defaultdict(list)
    for path in paths:
        with open(path, newline="") as lines:
            for row in csv.DictReader(lines):
                if row["outcome"] not in OUTCOMES:
                    sys.exit(f"{path}: outcome {row['outcome']!r} is none of {OUTCOMES}")
                runs[row["device"]].append((int(row["first"]), int(row["last"]), row["outcome"]))
    for device, of_device in runs.items():
        of_device.sort()
        for (_, last, _), (first, _, _) in zip(of_device, of_device[1:]):
            if first <= last:
                sys.exit(f"records of {device} give message {first} two outcomes")
    return runs


class Sent:
    """What a device sent, looked up by sequence number."""

    def __init__(self, runs):
        self.runs = runs
        self.firsts = [first for first, _, _ in runs]

    def outcome(self, seq):
        at = bisect.bisect_right(self.firsts, seq) - 1
        if at >= 0 and seq <= self.runs[at][1]:
            return self.runs[at][2]
        return None


def check(record_paths, stored_path):
    runs = read_records(record_paths)
    sent = {device: Sent(of_device) for device, of_device in runs.items()}
    counts = Counter()
    for of_device in runs.values():
        for first, last, outcome in of_device:
            counts[outcome] += last - first + 1
    seen = defaultdict(set)
    newest = {}
    examples = defaultdict(list)

    def broken(rule, device, seq):
        counts[rule] += 1
        if len(examples[rule]) < 10:
            examples[rule].append(f"{device} {seq}")

    with open(stored_path, newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"device", "seq"} <= set(rows.fieldnames or ()):
            sys.exit(f"{stored_path}: the columns must include device and seq, not {rows.fieldnames}")
        for row in rows:
            counts["rows"] += 1
            device, seq = row["device"], int(float(row["seq"]))
            outcome = sent[device].outcome(seq) if device in sent else None
            if outcome is None:
                broken("invented", device, seq)
                continue
            if seq in seen[device]:
                broken("duplicates", device, seq)
                continue
            seen[device].add(seq)
            counts[f"{outcome}_stored"] += 1
            if outcome == "refused":
                broken("refused_but_stored", device, seq)
            if "temperature" in row and abs(float(row["temperature"]) - (20 + seq % 1000 / 100)) > 1e-9:
                broken("altered", device, seq)
            if "position" in row:
                newest.setdefault(device, []).append((seq, row["position"]))

    for device, of_device in newest.items():
        of_device.sort()
        for (_, before), (seq, after) in zip(of_device, of_device[1:]):
            if (len(after), after) < (len(before), before):
                broken("misordered", device, seq)
    for device, of_device in runs.items():
        for first, last, outcome in of_device:
            if outcome == "acked":
                for seq in range(first, last + 1):
                    if seq not in seen[device]:
                        broken("lost", device, seq)

    must_be_zero = ("lost", "invented", "altered", "duplicates", "misordered", "refused_but_stored")
    result = {rule: counts[rule] for rule in must_be_zero}
    result |= {
        "acked": counts["acked"],
        "acked_stored": counts["acked_stored"],
        "refused": counts["refused"],
        "unknown_stored": counts["unknown_stored"],
        "unknown_not_stored": counts["unknown"] - counts["unknown_stored"],
        "rows": counts["rows"],
        "devices": len(runs),
        "holds": not any(counts[rule] for rule in must_be_zero),
        "examples": dict(examples),
    }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", nargs="+", required=True)
    parser.add_argument("--stored", required=True)
    arguments = parser.parse_args()
    result = check(arguments.record, arguments.stored)
    print(json.dumps(result))
    sys.exit(0 if result["holds"] else 1)


if __name__ == "__main__":
    main()
