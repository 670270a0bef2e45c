"""The main job, end to end, on real data: a real MLflow server, two real models, the gateway, and what AWS would have got.

    make acceptance DATA=path/to/folder

The folder holds credit_score.csv (21 raw columns, four of them text, target Credit_Score) and uci_credit_card.csv (23 numbers,
target default). Everything runs on 127.0.0.1 and ends by itself. Prints one line per check and exits 1 if one failed.
"""

import argparse
import concurrent.futures
import http.client
import json
import logging
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import boto3
import mlflow
import numpy as np
import onnxmltools
import onnxruntime
import pandas as pd
from botocore.config import Config
from mlflow import MlflowClient
from mlflow.models import infer_signature
from onnxmltools.convert.common.data_types import FloatTensorType as XgbFloat
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier

# MLflow's own ONNX flavour hands columns over in one dimension and warns that the input example does not run.
logging.getLogger("mlflow").setLevel(logging.ERROR)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
failures = []


def check(name, holds, found=""):
    print(f"  {'ok ' if holds else 'NOT'}  {name}{f': {found}' if found != '' else ''}", flush=True)
    if not holds:
        failures.append(name)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, ready, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            answer = ready()
            if answer:
                return answer
        except Exception:
            pass
        time.sleep(0.05)
    raise SystemExit(f"gave up waiting for {what}")


# --- the two models, as their owners would train and export them -------------------------------------------------------


def credit_data(folder):
    frame = pd.read_csv(folder / "credit_score.csv")
    target = frame.pop("Credit_Score")
    texts = [column for column in frame.columns if frame[column].dtype == object]
    frame[[c for c in frame.columns if c not in texts]] = frame[[c for c in frame.columns if c not in texts]].astype("float64")
    return frame, target, texts


def credit_model(frame, target, texts, trees):
    numbers = [column for column in frame.columns if column not in texts]
    pipeline = Pipeline([
        ("columns", ColumnTransformer([
            ("numbers", Pipeline([("gaps", SimpleImputer(strategy="median")), ("scale", StandardScaler())]), numbers),
            ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
        ])),
        ("trees", GradientBoostingClassifier(n_estimators=trees, max_depth=3, random_state=7)),
    ]).fit(frame.fillna({column: "" for column in texts}), target)
    types = [(c, StringTensorType([None, 1]) if c in texts else FloatTensorType([None, 1])) for c in frame.columns]
    model = to_onnx(pipeline, initial_types=types, options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3})
    return model


def credit_answers(model, frame, texts):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {
        c: frame[c].fillna("").to_numpy(dtype=object).reshape(-1, 1) if c in texts
        else frame[c].to_numpy(dtype=np.float32).reshape(-1, 1)
        for c in frame.columns
    }
    labels, probabilities = session.run(None, feeds)
    return [str(label) for label in labels], probabilities


def card_model(frame, target, trees):
    classifier = XGBClassifier(n_estimators=trees, max_depth=6, random_state=7, n_jobs=2)
    classifier.fit(frame.to_numpy(dtype=np.float32), target)
    return onnxmltools.convert_xgboost(classifier, initial_types=[("input", XgbFloat([None, frame.shape[1]]))], target_opset=15)


def card_answers(model, frame):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    labels, probabilities = session.run(None, {"input": frame.to_numpy(dtype=np.float32)})
    return [int(label) for label in labels], probabilities


def rows_of(frame):
    """Rows as a client sends them: a gap is null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


# --- processes ----------------------------------------------------------------------------------------------------------


class Processes:
    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, command, **environment):
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=self.folder)
        self.running.append(process)
        return process

    def stop(self):
        for process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Caller:
    """One keep-alive connection with a key."""

    def __init__(self, port, key):
        self.connection, self.key = http.client.HTTPConnection("127.0.0.1", port, timeout=60), key

    def post(self, path, body):
        headers = {"x-api-key": self.key, "content-type": "application/json"}
        self.connection.request("POST", path, json.dumps(body), headers)
        answer = self.connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())


def agreement(caller, model, rows, labels, probabilities, class_order, batch):
    """Rows whose class differs, and the largest difference of a probability."""
    differing, largest = 0, 0.0
    for start in range(0, len(rows), batch):
        part = rows[start:start + batch]
        status, _, answer = caller.post(f"/models/{model}/predict", {"data": part if batch > 1 else part[0]})
        if status != 200:
            raise SystemExit(f"row {start}: {status} {answer}")
        for offset, found in enumerate(answer["predictions"] if batch > 1 else [answer]):
            row = start + offset
            differing += found["prediction"] != labels[row]
            for position, name in enumerate(class_order):
                largest = max(largest, abs(found["probabilities"][name] - float(probabilities[row][position])))
    return differing, largest


# --- the run ------------------------------------------------------------------------------------------------------------


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data", type=pathlib.Path)
    arguments.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/release/modelgate")
    arguments.add_argument("--keep", action="store_true", help="leave the folder with models, logs and samples")
    options = arguments.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="modelgate-acceptance-"))
    processes = Processes(folder)
    try:
        run(options, folder, processes)
    finally:
        processes.stop()
        if options.keep or failures:
            print(f"logs, models and samples are in {folder}")
        else:
            subprocess.run(["rm", "-rf", str(folder)], check=False)
    print(f"{'FAILED: ' + ', '.join(failures) if failures else 'every check holds'}")
    return 1 if failures else 0


def run(options, folder, processes):
    mlflow_port, aws_port, data_port, admin_port = (free_port() for _ in range(4))
    uri = f"http://127.0.0.1:{mlflow_port}"
    scripts = pathlib.Path(sys.executable).parent
    processes.start("mlflow", [scripts / "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1",
                               "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
                               "--artifacts-destination", str(folder / "artifacts")],
                    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    processes.start("aws", [scripts / "ministack"], BIND_HOST="127.0.0.1", GATEWAY_PORT=str(aws_port))

    print("training", flush=True)
    credit, credit_target, texts = credit_data(options.data)
    card = pd.read_csv(options.data / "uci_credit_card.csv")
    card_target = card.pop("default")
    credit_models = {1: credit_model(credit, credit_target, texts, 40), 2: credit_model(credit, credit_target, texts, 60)}
    card_models = {1: card_model(card, card_target, 100)}
    credit_expected = {version: credit_answers(model, credit, texts) for version, model in credit_models.items()}
    card_expected = card_answers(card_models[1], card)

    print("registering", flush=True)
    wait_for("MLflow", lambda: http_get(mlflow_port, "/health")[0] == 200)
    mlflow.set_tracking_uri(uri)
    registry = MlflowClient()

    def register(name, model, frame):
        with mlflow.start_run():
            logged = mlflow.onnx.log_model(model, name="model", signature=infer_signature(frame), input_example=frame.head(5),
                                           registered_model_name=name)
        return logged.registered_model_version

    register("credit-score", credit_models[1], credit)
    registry.set_registered_model_alias("credit-score", "champion", 1)
    register("credit-card", card_models[1], card)
    registry.set_registered_model_alias("credit-card", "champion", 1)

    wait_for("the AWS stand-in", lambda: http_get(aws_port, "/_ministack/health")[0] < 500)
    aws = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws_port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
           "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    clients = dict(endpoint_url=aws["AWS_ENDPOINT_URL"], region_name="us-east-1", aws_access_key_id="test",
                   aws_secret_access_key="test")
    s3 = boto3.client("s3", **clients, config=Config(s3={"addressing_style": "path"}))
    s3.create_bucket(Bucket="samples")
    cloudwatch = boto3.client("cloudwatch", **clients)

    (folder / "modelgate.toml").write_text(CONFIGURATION.format(
        folder=folder, data=data_port, admin=admin_port, mlflow=uri))
    binary = [options.binary, "--config", str(folder / "modelgate.toml")]
    quiet = {**aws, "RUST_LOG": "info"}

    def key(plan):
        made = subprocess.run([options.binary, "keys", "create", "--config", str(folder / "modelgate.toml"), "--name", plan,
                               "--plan", plan], capture_output=True, text=True, check=True, env={**os.environ, **quiet})
        return re.search(r"mg_live_\w+", made.stdout).group(0)

    keys = {plan: key(plan) for plan in ("open", "tiny")}
    started = time.monotonic()
    gateway = processes.start("modelgate", [binary[0], "serve", *binary[1:]], **quiet)
    wait_for("the gateway", lambda: http_get(data_port, "/readyz")[0] == 200)
    print(f"the gateway is ready {time.monotonic() - started:.2f} s after its start, from an empty cache", flush=True)

    caller = Caller(data_port, keys["open"])
    asked = 0

    print("credit-score version 1, all rows", flush=True)
    rows = rows_of(credit)
    classes = ["Good", "Poor", "Standard"]
    labels, probabilities = credit_expected[1]
    differing, largest = agreement(caller, "credit-score", rows, labels, probabilities, classes, 500)
    check(f"{len(rows)} rows in lists: same class", differing == 0, differing)
    check("probabilities within 1e-6", largest <= 1e-6, largest)
    differing, largest = agreement(caller, "credit-score", rows[:1000], labels, probabilities, classes, 1)
    check("1000 rows one by one: same class, same probabilities", differing == 0 and largest <= 1e-6, (differing, largest))
    asked += len(rows) + 1000

    print("credit-card (XGBoost) in the same gateway, all rows", flush=True)
    card_rows = rows_of(card)
    differing, largest = agreement(caller, "credit-card", card_rows, *card_expected, ["0", "1"], 500)
    check(f"{len(card_rows)} rows in lists: same class", differing == 0, differing)
    check("probabilities within 1e-6", largest <= 1e-6, largest)

    print("version 2 is registered and the alias moved while 16 callers ask", flush=True)
    register("credit-score", credit_models[2], credit)
    answered, took = swap_under_load(data_port, keys["open"], rows, credit_expected, classes,
                                     lambda: registry.set_registered_model_alias("credit-score", "champion", 2))
    wrong = [what for what in answered if what not in (1, 2)]
    check("no request failed, none mixed versions", not wrong, wrong[:3] or "")
    check("both versions answered", {1, 2} <= set(answered), {v: answered.count(v) for v in (1, 2)})
    check("version 2 answers within the poll interval (5 s ± 20 %, plus the load)", took < 8, f"{took:.2f} s")
    asked += len(answered)

    print("quota", flush=True)
    tiny = Caller(data_port, keys["tiny"])
    statuses = [tiny.post("/models/credit-score/predict", {"data": rows[0]})[0] for _ in range(150)]
    check("a plan of 100 rows answers 100 times, then 429", statuses == [200] * 100 + [429] * 50,
          {status: statuses.count(status) for status in sorted(set(statuses))})
    asked += 100

    print("drift of version 2 against its own first rows", flush=True)
    agreement(caller, "credit-score", rows[:2000], *credit_expected[2], classes, 500)
    asked += 2000
    wait_for("a verdict on drift", lambda: b'modelgate_max_psi{model="credit-score"' in http_get(admin_port, "/metrics")[1], 15)

    print("after a stop", flush=True)
    gateway.send_signal(signal.SIGTERM)
    check("exit code 0 on SIGTERM", gateway.wait(30) == 0, gateway.returncode)
    samples = read_samples(s3, folder)
    mine = samples["credit-score"]
    check("every answered row is a sample, once", len(mine) == asked and not mine.duplicated(["request_id", "row"]).any(),
          f"{len(mine)} of {asked}")
    check("every feature is a column", {f"feature_{c}" for c in credit.columns} <= set(mine.columns))
    check("samples of both models", len(samples["credit-card"]) == len(card_rows), len(samples["credit-card"]))
    measured = read_metrics(cloudwatch, "credit-score")
    check("CloudWatch counted every prediction", measured["Prediction"] == asked, f"{measured['Prediction']:.0f} of {asked}")
    features = {feature for feature, in measured["features"]}
    numeric = set(credit.columns) - set(texts)
    check("CloudWatch has every numeric feature", numeric <= features, sorted(numeric - features) or "")
    check("CloudWatch has every text feature", set(texts) <= {f for f, in measured["texts"]}, "")
    check_percentiles(cloudwatch, card)
    check_dashboard(cloudwatch, binary, quiet)


def swap_under_load(port, key, rows, expected, classes, move):
    """Versions that answered (or what was wrong), and the time from the move to the first answer of version 2."""
    stop, seen, first_new = threading.Event(), [], []

    def ask(worker):
        caller, mine, row = Caller(port, key), [], worker
        while not stop.is_set():
            row = (row + 97) % len(rows)
            status, headers, answer = caller.post("/models/credit-score/predict", {"data": rows[row]})
            mine.append(judge(status, headers, answer, row, expected, classes))
            if mine[-1] == 2 and not first_new:
                first_new.append(time.monotonic())
        return mine

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        workers = [pool.submit(ask, worker) for worker in range(16)]
        time.sleep(1)
        moved = time.monotonic()
        move()
        end = moved + 15
        while not first_new and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(1)
        stop.set()
        for worker in workers:
            seen += worker.result()
    return seen, (first_new[0] if first_new else float("inf")) - moved


def judge(status, headers, answer, row, expected, classes):
    """The version that answered, or what is wrong with the answer."""
    if status != 200:
        return f"{status} {answer}"
    version = int(answer["version"])
    if not headers["Modelgate-Model"].startswith(f"credit-score@{version};"):
        return "header and body name different versions"
    labels, probabilities = expected[version]
    same = answer["prediction"] == labels[row] and all(
        abs(answer["probabilities"][name] - float(probabilities[row][i])) <= 1e-6 for i, name in enumerate(classes))
    return version if same else f"row {row}: not what version {version} answers"


def read_samples(s3, folder):
    frames = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="samples"):
        for item in page.get("Contents", []):
            if "/_manifest/" in item["Key"]:
                continue
            path = folder / "object.parquet"
            s3.download_file("samples", item["Key"], str(path))
            name = re.search(r"model=([^/]+)/", item["Key"]).group(1)
            frames.setdefault(name, []).append(pd.read_parquet(path, partitioning=None))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def read_metrics(cloudwatch, model):
    end = time.time() + 120
    window = dict(Namespace="ModelGate", StartTime=end - 3600, EndTime=end, Period=3600, Statistics=["SampleCount", "Sum"])
    points = cloudwatch.get_metric_statistics(
        MetricName="Prediction", Dimensions=[{"Name": "Model", "Value": model}], **window)["Datapoints"]
    names = {"FeatureValue": set(), "FeatureCategory": set()}
    for metric in names:
        for page in cloudwatch.get_paginator("list_metrics").paginate(Namespace="ModelGate", MetricName=metric):
            for found in page["Metrics"]:
                dimensions = {d["Name"]: d["Value"] for d in found["Dimensions"]}
                if dimensions.get("Model") == model:
                    names[metric].add((dimensions["Feature"],))
    return {"Prediction": sum(point["SampleCount"] for point in points), "features": names["FeatureValue"],
            "texts": names["FeatureCategory"]}


def check_percentiles(cloudwatch, card):
    """Every row of credit-card was asked once: the percentiles CloudWatch makes of Values and Counts are those of the data."""
    end = time.time() + 120
    window = dict(Namespace="ModelGate", MetricName="FeatureValue", StartTime=end - 3600, EndTime=end, Period=7200)
    furthest, compared = (0.0, ""), 0
    for feature in (column for column in card.columns if card[column].min() >= 0):
        dimensions = [{"Name": "Model", "Value": "credit-card"}, {"Name": "Feature", "Value": feature}]
        for share in (50, 99):
            points = cloudwatch.get_metric_statistics(Dimensions=dimensions, ExtendedStatistics=[f"p{share}"], **window)
            found = [point["ExtendedStatistics"][f"p{share}"] for point in points["Datapoints"]]
            low, high = np.percentile(card[feature], [share - 0.1, share + 0.1], method="closest_observation")
            off = max(max(low - value, value - high, 0) / max(abs(high), 1) for value in found) if found else float("inf")
            furthest, compared = max(furthest, (off, f"p{share} of {feature}")), compared + 1
    check(f"{compared} percentiles read back from CloudWatch are within 3 % of the data's", furthest[0] <= 0.032, furthest)


def check_dashboard(cloudwatch, binary, environment):
    """What `dashboard put` made is read back, and every search of it is compared with the metrics there are."""
    def put(*more, answer=""):
        return subprocess.run([binary[0], "dashboard", "put", "--name", "gate", *more, *binary[1:]], input=answer,
                              capture_output=True, text=True, env={**os.environ, **environment})

    refused = put()
    check("nothing is put without a yes, and the price comes first", refused.returncode == 1
          and re.match(r"\d+ metrics, \$\d+\.\d\d a month", refused.stderr) and not cloudwatch.list_dashboards()["DashboardEntries"],
          refused.stderr.splitlines()[0])
    done = put("--yes", "--alarm-action", "arn:aws:sns:us-east-1:000000000000:on-call")
    check("dashboard put", done.returncode == 0, done.stdout.strip() or done.stderr)
    body = json.loads(cloudwatch.get_dashboard(DashboardName="gate")["DashboardBody"])
    alarms = cloudwatch.describe_alarms(AlarmNamePrefix="ModelGate ")["MetricAlarms"]
    check("three alarms a model and one for refused series are there", len(alarms) == 7, sorted(a["AlarmName"] for a in alarms))
    schemas = set()
    for page in cloudwatch.get_paginator("list_metrics").paginate(Namespace="ModelGate"):
        schemas |= {(",".join(d["Name"] for d in metric["Dimensions"]), metric["MetricName"]) for metric in page["Metrics"]}
    expressions = re.findall(r"SEARCH\('\{\"ModelGate\",?([^}]*)\} MetricName=\"(\w+)\"", " ".join(
        row[0]["expression"] for widget in body["widgets"] for row in widget["properties"].get("metrics", [])))
    seldom = {"FeatureMissing", "FeatureUnseen", "SeriesRefused", "Throttled", "Rollbacks", "VersionsRefused", "Accuracy", "RMSE",
              "LabelledRows"}
    empty = sorted(metric for dimensions, metric in expressions if (dimensions, metric) not in schemas and metric not in seldom)
    check(f"{len(expressions)} searches of the dashboard find the metrics they name", len(expressions) > 20 and not empty, empty or "")


def http_get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


CONFIGURATION = """
data_dir = "{folder}/data"

[server]
listen = "127.0.0.1:{data}"
admin_listen = "127.0.0.1:{admin}"
drain_delay = "0s"

[registry]
uri = "{mlflow}"
poll_interval = "5s"

[[model]]
name = "credit-score"
select = "alias:champion"

[[model]]
name = "credit-card"
select = "alias:champion"

[plans.open]

[plans.tiny]
quota = 100
period = "day"
unit = "rows"

[metrics.cloudwatch]
namespace = "ModelGate"
interval = "10s"

[capture]
sink = "s3://samples/drift"
flush = {{ rows = 10000, age = "10s" }}
"""

if __name__ == "__main__":
    sys.exit(main())
