"""`plsc-mae board`: serves the VisualDL pages of runs until Ctrl-C."""

from __future__ import annotations

import errno
import locale
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plsc_mae.config.runs import BoardConfig
from plsc_mae.errors import ConfigError, DataError

PORTS = 20  # number of ports to try from the default one
PICTURES = 1000  # most pictures per run and tag that the server shows; VisualDL's own limit is 10
FILES = "*vdlrecords*"


def run(config: BoardConfig) -> None:
    """Serve the runs below the folders of `config` until Ctrl-C.

    The server shares nothing with the runs but their files, sends no statistics about its use, and starts no process.

    Raises:
        ConfigError: visualdl cannot be imported, or the server cannot listen on the host and port.
        DataError: a folder does not exist.
    """
    for folder in config.runs:
        if not Path(folder).is_dir():
            raise DataError(f"there is no folder {folder}; name output folders of runs, or a folder of several runs")
    server = _server(config)
    url = f"http://{_shown_host(config.host)}:{server.port}/app/scalar"
    runs = sorted({str(file.parent) for folder in config.runs for file in Path(folder).rglob(FILES)})
    noun = "run" if len(runs) == 1 else "runs"
    print(f"{len(runs)} {noun} in {', '.join(config.runs)}: {url} (Ctrl-C ends the server)", flush=True)
    if not runs:
        print("no run has written VisualDL records there yet; the page shows them once they exist", flush=True)
    server.serve_forever()  # until Ctrl-C; closes the server
    print("stopped")


def _server(config: BoardConfig) -> Any:
    """Return a server of VisualDL's application that already listens on its port."""
    listener, handler = _listen(config), signal.getsignal(signal.SIGINT)
    try:
        from visualdl.server import app as visualdl
        from visualdl.server import data_manager, log
        from werkzeug.serving import WSGIRequestHandler, make_server
    except Exception as error:  # an unsuitable protobuf is a TypeError
        listener.close()
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"board needs the package visualdl, which cannot be imported ({reason}): pip install visualdl"
        ) from None

    class Silent(WSGIRequestHandler):
        """Handler of requests that writes no line per request."""

        def log_request(self, *_: object) -> None:
            """Write nothing."""

    host, port = listener.getsockname()[:2]
    log.logger.setLevel(logging.ERROR)  # it warns of every request that its cache cannot answer
    data_manager.default_data_manager.get_reservoir("image")._max_size = PICTURES
    profiler = visualdl.create_profiler_api_call
    visualdl.create_profiler_api_call = lambda _folders: profiler(
        None
    )  # its thread would never end; runs have no traces
    arguments = visualdl.ParseArgs(
        logdir=list(config.runs), host=host, port=port, language=_language(config.language), telemetry=False
    )
    app = visualdl.create_app(arguments)
    signal.signal(signal.SIGINT, handler)  # create_app has set the default, which ends the process at once
    server = make_server(host, port, app, threaded=False, request_handler=Silent, fd=listener.fileno())
    listener.close()  # the server has a duplicate
    return server


def _listen(config: BoardConfig) -> socket.socket:
    """Return a socket that listens on --port or, without it, on the first free one of PORTS ports."""
    reason = ""
    for port in _ports(config):
        listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, port))
            listener.listen()
            return listener
        except (OSError, UnicodeError) as error:  # a UnicodeError for names that DNS cannot have
            listener.close()
            reason = getattr(error, "strerror", None) or str(error)
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                break
    given = f"--port {config.port}" if config.port is not None else f"ports {BoardConfig.first_port} and above"
    raise ConfigError(f"cannot listen on {given} of --host {config.host} ({reason}); choose another --port or --host")


def _ports(config: BoardConfig) -> Iterator[int]:
    if config.port is not None:
        yield config.port
    else:
        yield from range(config.first_port, config.first_port + PORTS)


def _shown_host(host: str) -> str:
    """Return the host in the URL: this machine's name if `host` means all addresses, else `host`, IPv6 in brackets."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _language(chosen: str) -> str:
    """Return the language of the pages, en or zh; without one, VisualDL fails for browsers of other languages."""
    if chosen != "auto":
        return chosen
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    language = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "zh" if language.lower().startswith("zh") else "en"
