"""The commands as a person types them, right and wrong."""
import subprocess

from platform_under_test import binary

RULE = '[[rule]]\nname = "{name}"\nwhen = "temperature > 80"\n'


def dunlin(*arguments, cwd):
    return subprocess.run(
        [binary("dunlin"), *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


def test_check_does_not_pass_what_is_not_there(tmp_path):
    good, empty = tmp_path / "good.toml", tmp_path / "dunlin.toml"
    good.write_text(RULE.format(name="hot"))
    empty.write_text("")
    wrong = dunlin("check", "--config", empty, good, "typo.toml", cwd=tmp_path)
    assert wrong.returncode == 3 and "typo.toml: No such file" in wrong.stderr, wrong
    assert dunlin("check", "--config", "typo.toml", cwd=tmp_path).returncode == 3
    # Only the directory that the first start makes may be missing.
    assert dunlin("check", cwd=tmp_path).stdout == "configuration is valid, 0 rules are valid\n"


def test_check_sees_all_places_as_one_set(tmp_path):
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(RULE.format(name="hot"))
    other.write_text(RULE.format(name="hot"))
    wrong = dunlin("check", one, other, cwd=tmp_path)
    assert wrong.returncode == 3, wrong
    assert wrong.stderr == f'dunlin: {other}: rule "hot": {one} has one of that name\n'
    other.write_text(RULE.format(name="cold"))
    for places in ((one, other), (tmp_path,), (tmp_path, one), (one, one, other)):
        right = dunlin("check", *places, cwd=tmp_path)
        assert right.stdout == "configuration is valid, 2 rules are valid\n", right


def test_check_names_numbers_without_sense(tmp_path):
    config = tmp_path / "dunlin.toml"
    config.write_text("[tsdb]\nflush_after_seconds = 9223372036854775807\n")
    wrong = dunlin("check", "--config", config, cwd=tmp_path)
    assert wrong.returncode == 3 and "tsdb.flush_after_seconds must be from 1 to 86400" in wrong.stderr, wrong
