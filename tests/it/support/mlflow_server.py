"""Runs a real MLflow server on a free port of the loopback, prints the port, and goes when its parent goes.

    python mlflow_server.py proxied|direct

Its parent holds the other end of stdin: however the parent ends, stdin closes then. `proxied` hands out artifacts itself,
`direct` leaves them to a folder that only the server reads. The listener takes connections before the server is ready
for them, so nobody needs to ask whether it is.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading

folder = tempfile.mkdtemp(prefix="mlflow-test-")
proxied = sys.argv[1] == "proxied"
os.environ.update(
    # What `mlflow server` hands to its workers. Starting them ourselves takes 2 seconds instead of 12.
    _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder}/mlflow.db",
    _MLFLOW_SERVER_REGISTRY_STORE=f"sqlite:///{folder}/mlflow.db",
    _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/" if proxied else f"{folder}/artifacts",
    _MLFLOW_SERVER_ARTIFACT_DESTINATION=f"{folder}/artifacts",
    _MLFLOW_SERVER_SERVE_ARTIFACTS="true" if proxied else "false",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    MLFLOW_DISABLE_TELEMETRY="true",
)
os.setsid()
os.chdir(folder)
listener = socket.create_server(("127.0.0.1", 0))


def go_with_parent():
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def serve_3():
    import uvicorn

    config = uvicorn.Config("mlflow.server.fastapi_app:app", log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def serve_2():
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", "--bind", f"fd://{listener.fileno()}", "--log-level", "warning", "mlflow.server:app"]
    WSGIApplication().run()


threading.Thread(target=go_with_parent, daemon=True).start()
print(listener.getsockname()[1], flush=True)

from mlflow.version import VERSION

serve_3() if VERSION.startswith("3.") else serve_2()
