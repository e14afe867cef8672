import os
import pathlib
import subprocess

import pytest
from kafka_under_test import Kafka
from platform_under_test import Platform
from postgres_under_test import Postgres
from receivers import WebhookReceiver


@pytest.fixture
def platforms(tmp_path):
    """Makes platforms, each in a directory of its own; the last lines of a log are shown when a test fails."""
    made = []

    def make(config=None, data=None, roles=None):
        directory = tmp_path / f"platform-{len(made)}"
        directory.mkdir()
        made.append(Platform(directory, config, data, roles))
        return made[-1]

    yield make
    for platform in made:
        platform.close()
        if platform.log_path.exists():
            print(f"--- {platform.log_path}\n{platform.log()[-3000:]}")


@pytest.fixture
def platform(platforms):
    return platforms().start()


@pytest.fixture
def receiver():
    receiver = WebhookReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def postgres(tmp_path):
    server = Postgres(tmp_path / "postgres")
    yield server
    server.close()


@pytest.fixture
def kafkas(tmp_path):
    """Starts brokers, each cluster in a directory of its own."""
    started = []

    def start(brokers=1):
        started.append(Kafka(tmp_path / f"kafka-{len(started)}", brokers))
        return started[-1]

    yield start
    for kafka in started:
        kafka.close()


@pytest.fixture
def loads():
    """Loads to be ended with the test."""
    running = []
    yield running
    for load in running:
        load.close()


@pytest.fixture
def small_disk(tmp_path):
    """Makes mounted ext4 file systems of a given size in files. Needs root and a loop device."""
    if os.geteuid() != 0:
        pytest.fail("mounting a file system and cutting its power needs root; run the tests as root")
    mounts = []

    def make(megabytes):
        image, mountpoint = tmp_path / f"disk-{len(mounts)}.img", tmp_path / f"disk-{len(mounts)}"
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        mountpoint.mkdir()
        disk = Disk(image, mountpoint)
        disk.mount()
        mounts.append(disk)
        return disk

    yield make
    for disk in mounts:
        disk.unmount()


class Disk:
    def __init__(self, image, mountpoint):
        self.image, self.mountpoint = image, pathlib.Path(mountpoint)
        self.device = None

    def mount(self):
        if not self.device:
            self.device = run("losetup", "--find", "--show", str(self.image)).strip()
        run("mount", self.device, str(self.mountpoint))

    def remount(self):
        run("umount", str(self.mountpoint))
        run("mount", self.device, str(self.mountpoint))

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False)
        subprocess.run(["losetup", "--detach", self.device], check=False)


def run(*command):
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
