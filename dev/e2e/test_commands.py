"""The commands as a person types them, right and wrong."""
import os
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


def test_a_reader_that_has_seen_enough_is_no_failure(platform):
    platform.add_device("pump-1")
    environment = os.environ | {"DUNLIN_TOKEN": platform.token(), "DUNLIN_URL": platform.url}
    for arguments in (["device", "list"], ["ledger"], ["query", "SELECT 1"], ["completions", "bash"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [binary("dunlin"), *arguments]
        run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60, check=False)
        os.close(writer)
        assert (run.returncode, run.stderr) == (0, b""), (arguments, run)


def test_names_are_names_whatever_is_in_them(platform):
    for name in ("a&b", "a?b", "a b", "ü"):
        first = platform.add_device(name)
        assert platform.cli("device", "token", name).stdout.strip() != first


def test_a_simulated_fleet_leaves_one_token_to_a_device(platform):
    token = platform.add_device("sim-00001")
    bearer = {"Authorization": f"Bearer {token}"}
    simulate = ["simulate", "--devices", "1", "--duration", "1", "--mqtt", f"127.0.0.1:{platform.mqtt_port}"]
    assert platform.request("POST", "/v1/telemetry", b'{"temperature": 1}', headers=bearer)[0] == 200
    platform.cli(*simulate)
    assert platform.request("POST", "/v1/telemetry", b'{"temperature": 1}', headers=bearer)[0] == 401
