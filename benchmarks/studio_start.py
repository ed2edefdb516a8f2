"""How soon does the studio answer? `python benchmarks/studio_start.py`

Starts the page of the toybox twice: with an empty compilation cache, and again with the one that this filled.
Prints the seconds from the start of the process to the page and to its first image, and the mean of the next
five.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command

_NEXT = 5


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rc.example("bird").save(folder / "bird.png")
        print("| compiled programs | page | first image | next images |\n|---|---|---|---|")
        for kind in ("none", "cached"):
            page, first, after = measure(folder)
            print(f"| {kind} | {page:.1f} s | {first:.1f} s | {after:.2f} s |", flush=True)


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds to the page, to the first image, and of a next image."""
    from gradio_client import Client, handle_file

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "REALCUSTOM_JAX_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "realcustom_jax.studio", "--port", str(port), "--share-nothing"]
    begin = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}", server, folder / "log.txt")
        page = time.monotonic() - begin
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(folder))
        request = ("a bird on the beach", [handle_file(str(folder / "bird.png"))], ["bird"])
        client.predict(*request, "1", api_name="/create")
        first = time.monotonic() - begin
        for seed in range(_NEXT):
            client.predict(*request, str(2 + seed), api_name="/create")
        return page, first, (time.monotonic() - begin - first) / _NEXT
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    """Wait until the page answers."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise rc.UserError(f"the studio ended: {log.read_text()[-500:]}")


if __name__ == "__main__":
    run_command(main)
