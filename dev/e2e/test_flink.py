"""What runs in Apache Flink as well says the same there."""
import subprocess

from platform_under_test import HERE, REPOSITORY

ALIKE = REPOSITORY / "crates/pipeline/src/rules/expression/alike.tsv"


def test_flink_says_of_expressions_what_the_rules_say():
    jobs = subprocess.run([HERE.parent / "setup.sh", "flink"], check=True, capture_output=True, text=True).stdout.strip()
    command = ["java", "-Xmx1g", "--add-opens", "java.base/java.util=ALL-UNNAMED", "--add-opens", "java.base/java.lang=ALL-UNNAMED"]
    command += ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", f"{jobs}/*:{jobs}", "Expressions", str(ALIKE)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    rules = dict(line.split("\t") for line in ALIKE.read_text().splitlines() if line and line[0] not in "#>")
    flink = dict(line.split("\t") for line in run.stdout.splitlines())
    assert flink.keys() == rules.keys() and len(rules) > 90
    # Where Flink ends the query (E), the rule has NULL.
    differ = {
        text: (verdicts, flink[text])
        for text, verdicts in rules.items()
        if any(theirs != ours and (theirs, ours) != ("E", "N") for ours, theirs in zip(verdicts, flink[text], strict=True))
    }
    assert not differ, f"{differ}\n{run.stderr[-4000:]}"
