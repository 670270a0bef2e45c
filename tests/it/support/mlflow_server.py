"""Runs a real MLflow server on a free port of the loopback, prints the port, and goes when its parent goes.

    python mlflow_server.py KIND

Its parent holds the other end of stdin: however the parent ends, stdin closes then. The listener takes connections before
the server is ready for them, so nobody needs to ask whether it is. Kinds:

    proxied     hands out artifacts itself
    direct      leaves them to a folder that only the server reads
    bucket      leaves them to S3 (--no-serve-artifacts, an s3:// artifact root), where it never is
    guarded     as proxied, with basic authentication (admin / "the right password") and under the path /mlflow
    workspaces  as proxied, with workspaces
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading

folder = tempfile.mkdtemp(prefix="mlflow-test-")
kind = sys.argv[1]
proxied = kind not in ("direct", "bucket")
root = {"direct": f"{folder}/artifacts", "bucket": "s3://samples/mlflow"}.get(kind, "mlflow-artifacts:/")
os.environ.update(
    # What `mlflow server` hands to its workers. Starting them ourselves takes 2 seconds instead of 12.
    _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder}/mlflow.db",
    _MLFLOW_SERVER_REGISTRY_STORE=f"sqlite:///{folder}/mlflow.db",
    _MLFLOW_SERVER_ARTIFACT_ROOT=root,
    _MLFLOW_SERVER_ARTIFACT_DESTINATION=f"{folder}/artifacts",
    _MLFLOW_SERVER_SERVE_ARTIFACTS="true" if proxied else "false",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    # Its webhooks go to gateways on the loopback.
    MLFLOW_WEBHOOK_ALLOWED_SCHEMES="http",
    MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS="true",
    MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY="bm90IGEgc2VjcmV0LCBvbmx5IGEgdGVzdCBvZiBvbmU=",
)
if kind == "guarded":
    # Without the cache each request costs the server half a second.
    settings = "default_permission = READ\nadmin_username = admin\nauth_cache_ttl_seconds = 60\n"
    with open(f"{folder}/auth.ini", "w") as file:
        file.write(f"[mlflow]\ndatabase_uri = sqlite:///{folder}/auth.db\n{settings}")
    os.environ.update(
        MLFLOW_AUTH_CONFIG_PATH=f"{folder}/auth.ini",
        _MLFLOW_STATIC_PREFIX="/mlflow",
        _MLFLOW_SGI_NAME="uvicorn",
        MLFLOW_FLASK_SERVER_SECRET_KEY="for forms that nobody fills in",
        MLFLOW_AUTH_ADMIN_PASSWORD="the right password",
    )
if kind == "workspaces":
    os.environ.update(MLFLOW_ENABLE_WORKSPACES="true", MLFLOW_WORKSPACE_STORE_URI=f"sqlite:///{folder}/mlflow.db")
os.setsid()
os.chdir(folder)
listener = socket.create_server(("127.0.0.1", 0))


def go_with_parent():
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def serve_3():
    import uvicorn

    app, is_factory = ("mlflow.server.auth:create_app", True) if kind == "guarded" else ("mlflow.server.fastapi_app:app", False)
    config = uvicorn.Config(app, factory=is_factory, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def serve_2():
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", "--bind", f"fd://{listener.fileno()}", "--log-level", "warning", "mlflow.server:app"]
    WSGIApplication().run()


threading.Thread(target=go_with_parent, daemon=True).start()
print(listener.getsockname()[1], flush=True)

from mlflow.version import VERSION

serve_3() if VERSION.startswith("3.") else serve_2()
