"""What a gateway asks of the system while it loads every test model and answers 1,000 requests to each.

    make trace

Needs strace (Debian: apt install strace) and nothing else. Fails if the gateway or a process that tries a version opens a
connection, starts another program than itself, or opens any file while it answers; prints what it opened before that.
"""

import collections
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
UNFIT = {"not-finite", "wrong-rows"}
RUNS = 1000
DATA, ADMIN = 18441, 18442
# What new threads, the allocator, and looks at memory and at the number of processors read.
OF_THREADS = ("/proc/self/", "/proc/sys/vm/overcommit_memory", "/sys/fs/cgroup/", "/sys/devices/system/cpu/")


def lay_out(site):
    models = sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir() and folder.name not in UNFIT)
    text = [
        f'data_dir = "{site}/data"',
        f'[server]\nlisten = "127.0.0.1:{DATA}"\nadmin_listen = "127.0.0.1:{ADMIN}"',
        f'[plans.open]\n[registry]\nuri = "file:{site}/registry"',
    ]
    for name in models:
        shutil.copytree(FIXTURES / name, site / "registry" / name / "1")
        (site / "registry" / name / "aliases.toml").write_text("champion = 1\n")
        text.append(f'[[model]]\nname = "{name}"\nselect = "alias:champion"')
    (site / "modelgate.toml").write_text("\n".join(text) + "\n")
    return models


def row_of(model):
    example = json.loads((FIXTURES / model / "serving_input_example.json").read_text())
    if "dataframe_split" in example:
        frame = example["dataframe_split"]
        return dict(zip(frame["columns"], frame["data"][0]))
    return {name: values[0] for name, values in example["inputs"].items()}


def wait_until_ready():
    for _ in range(120):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", DATA)
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                return connection
        except OSError:
            pass
        time.sleep(0.5)
    sys.exit("the gateway did not become ready")


def ask(connection, key, model, times):
    body = json.dumps({"data": row_of(model)})
    headers = {"content-type": "application/json", "x-api-key": key}
    for _ in range(times):
        connection.request("POST", f"/models/{model}/predict", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, (model, text)


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        site = pathlib.Path(folder)
        models = lay_out(site)
        config = ["--config", str(site / "modelgate.toml")]
        made = subprocess.run([program, "keys", "create", "--name", "trace", "--plan", "open", *config],
                              check=True, capture_output=True, text=True)
        trace = site / "trace"
        watch = ["strace", "-D", "-f", "-qq", "-o", str(trace), "-e", "trace=open,openat,connect,execve,execveat"]
        # Told to stop, the gateway is the one that hears it (-D).
        with open(site / "log", "w") as log:
            gateway = subprocess.Popen([*watch, program, "serve", *config], stdout=log, stderr=log)
        try:
            connection = wait_until_ready()
            for model in models:
                ask(connection, made.stdout.strip(), model, 20)
            loaded = len(trace.read_text().splitlines())
            for model in models:
                ask(connection, made.stdout.strip(), model, RUNS)
        finally:
            gateway.terminate()
            gateway.wait()
        calls = trace.read_text().splitlines()
        judge(program, calls, loaded, str(site))
        print(f"{len(models)} models, {RUNS} requests each: nothing but what is listed")


def judge(program, calls, loaded, site):
    opened = collections.Counter()
    for at, call in enumerate(calls):
        _, _, call = call.partition(" ")
        call = call.strip()
        assert not call.startswith("connect("), call
        if call.startswith("execve"):
            assert f'"{program}"' in call, call
        named = re.match(r'open(?:at)?\((?:[^,]*, )?"([^"]*)"', call)
        if named:
            path = named[1].replace(site, "<site>")
            # A pulse may begin to write what it keeps.
            kept = path.startswith("<site>/data")
            assert at < loaded or kept or path.startswith(OF_THREADS), f"opened while it answers: {call}"
            opened[re.sub(r"[0-9a-f]{64}", "<digest>", re.sub(r"\.tmp\w+", "<new>", path))] += 1
    for path, times in sorted(opened.items()):
        if not path.startswith("/etc/ssl/certs/"):
            print(f"{times:5} {path}")


main()
