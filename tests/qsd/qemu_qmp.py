"""Python's qemu.qmp against standfastd: its client and qmp-shell.

Usage: qemu_qmp.py STANDFASTD. `cargo xtask test qsd` runs it in a virtual environment of its own.
"""

import asyncio
import os
import subprocess
import sys
import tempfile

from qemu.qmp import ExecuteError, QMPClient, Runstate

CLIENTS = 50
PIPELINED = 200
LIMIT_S = 60


class Daemon:
    """standfastd with a node, and a monitor on a socket."""

    def __init__(self, program, directory):
        self.path = os.path.join(directory, "qmp.sock")
        self.process = subprocess.Popen(
            [
                program,
                "--blockdev", "null-co,node-name=n,size=1048576",
                "--chardev", f"socket,id=q,path={self.path},server=on,wait=off",
                "--monitor", "q",
                "--pidfile", os.path.join(directory, "pid"),
            ],
            stderr=subprocess.DEVNULL,
        )

    async def connect(self, name="client"):
        """A client that has negotiated."""
        for _ in range(1000):
            if os.path.exists(self.path):
                break
            await asyncio.sleep(0.01)
        client = QMPClient(name)
        await client.connect(self.path)
        return client


async def commands(daemon):
    """Answers, errors with their class, and what the client makes of the greeting."""
    client = await daemon.connect()
    assert client.greeting is not None, "the client has found no greeting"
    names = {command["name"] for command in await client.execute("query-commands")}
    assert {"query-block", "query-commands", "quit"} <= names, names
    for command, arguments, expected in [
        ("nosuch", None, "CommandNotFound"),
        ("block_resize", {"node-name": "zz", "size": 512}, "GenericError"),
        ("query-version", {"x": 1}, "GenericError"),
    ]:
        try:
            await client.execute(command, arguments)
        except ExecuteError as error:
            assert error.error.error.class_ == expected, error
        else:
            raise AssertionError(f"{command} should have failed")
    await client.disconnect()
    assert client.runstate == Runstate.IDLE


async def events(daemon):
    """Events come to a listener of theirs, in their order, between answers."""
    client = await daemon.connect()
    with client.listener(("STOP", "RESUME")) as listener:
        for _ in range(3):
            await client.execute("stop")
            await client.execute("cont")
        seen = [(await listener.get())["event"] for _ in range(6)]
    assert seen == ["STOP", "RESUME"] * 3, seen
    await client.disconnect()


async def pipelining(daemon):
    """Many commands under way at once, each with its own answer."""
    client = await daemon.connect()
    nodes = await asyncio.gather(
        *(client.execute("query-named-block-nodes") for _ in range(PIPELINED))
    )
    assert all(answer[0]["node-name"] == "n" for answer in nodes)
    await client.disconnect()


async def reconnects(daemon):
    """A client that comes again negotiates again, with the same object and with a new one."""
    client = await daemon.connect()
    for _ in range(20):
        await client.disconnect()
        await client.connect(daemon.path)
        await client.execute("query-version")
    await client.disconnect()


async def many(daemon):
    """Many clients at once, on one socket: all are served, however many at a time."""

    async def one(number):
        client = await daemon.connect(f"client {number}")
        for _ in range(5):
            await client.execute("query-block")
        await client.disconnect()

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))


def shell(daemon):
    """qmp-shell, as people type."""
    typed = "query-version\nblock_resize node-name=zz size=512\nnosuch\n"
    program = os.path.join(os.path.dirname(sys.executable), "qmp-shell")
    done = subprocess.run(
        [program, daemon.path],
        input=typed,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    for expected in ["Connected to QEMU", '"package":', "node-name='zz'", "CommandNotFound"]:
        assert expected in done.stdout, f"{expected}: {done.stdout} {done.stderr}"


async def quits(daemon):
    """quit is answered, and then the daemon ends in order."""
    client = await daemon.connect()
    await client.execute("quit")
    assert daemon.process.wait(LIMIT_S) == 0
    try:
        await client.disconnect()
    except EOFError:
        # The other side has gone first.
        pass


async def main():
    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(sys.argv[1], directory)
        try:
            for test in [commands, events, pipelining, reconnects, many]:
                await asyncio.wait_for(test(daemon), LIMIT_S)
                print(f"qemu.qmp: {test.__name__}: ok")
            shell(daemon)
            print("qemu.qmp: qmp-shell: ok")
            await asyncio.wait_for(quits(daemon), LIMIT_S)
            print("qemu.qmp: quit: ok")
        finally:
            daemon.process.kill()
            daemon.process.wait()


asyncio.run(main())
