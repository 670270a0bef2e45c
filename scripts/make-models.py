#!/usr/bin/env python3
"""Trains and exports every model the tests, the self-test and the demo use, on data made here from a fixed seed.

    pip install -r scripts/requirements-models.txt
    python scripts/make-models.py

Writes tests/fixtures/<kind>/ (model.onnx, MLmodel, the two input examples MLflow keeps, and expected.json: rows as a
caller sends them with what Python's onnxruntime answers), src/model/self-test/ and demo/registry/.
"""

import json
import os
import pathlib
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pandas as pd
from lightgbm import LGBMClassifier
from onnx import TensorProto, helper, numpy_helper
from onnxmltools.convert import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as ToolsFloat
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from xgboost import XGBClassifier

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
SELF_TEST = ROOT / "src" / "model" / "self-test"
DEMO = ROOT / "demo" / "registry" / "credit-score"

SEED = 20260101
TRAINING_ROWS = 1500
EXPECTED_ROWS = 200
# The newest operator set that ONNX Runtime 1.24, the oldest library served with, is sure to know.
OPSET = {"": 18, "ai.onnx.ml": 3}

OCCUPATIONS = ["Accountant", "Doctor", "Engineer", "Lawyer", "Mechanic", "Teacher"]
INTEGERS = ["Age", "Num_Bank_Accounts", "Num_Credit_Card", "Interest_Rate", "Num_of_Loan", "Delay_from_due_date"]
FLOATS = [
    "Annual_Income",
    "Monthly_Inhand_Salary",
    "Num_of_Delayed_Payment",
    "Changed_Credit_Limit",
    "Num_Credit_Inquiries",
    "Outstanding_Debt",
    "Credit_Utilization_Ratio",
    "Credit_History_Age",
    "Total_EMI_per_month",
    "Amount_invested_monthly",
    "Monthly_Balance",
]
TEXTS = ["Occupation", "Credit_Mix", "Payment_of_Min_Amount", "Payment_Behaviour"]
OPTIONAL = ["Monthly_Inhand_Salary", "Num_of_Delayed_Payment", "Credit_Mix"]


def customers(rows, seed, gaps=False):
    """Made-up bank customers, with a score from 0 to 1 that their columns explain."""
    rng = np.random.default_rng(seed)
    income = np.round(rng.lognormal(10.6, 0.6, rows), 2)
    loans = rng.integers(0, 9, rows)
    delay = rng.integers(0, 60, rows)
    debt = np.round(rng.gamma(2.0, 700.0, rows), 2)
    mix = rng.choice(["Bad", "Standard", "Good"], rows, p=[0.3, 0.4, 0.3])
    minimum = rng.choice(["Yes", "No", "NM"], rows, p=[0.5, 0.35, 0.15])
    frame = pd.DataFrame(
        {
            "Age": rng.integers(18, 75, rows),
            "Num_Bank_Accounts": rng.integers(0, 11, rows),
            "Num_Credit_Card": rng.integers(0, 11, rows),
            "Interest_Rate": rng.integers(1, 35, rows),
            "Num_of_Loan": loans,
            "Delay_from_due_date": delay,
            "Annual_Income": income,
            "Monthly_Inhand_Salary": np.round(income / 12 * rng.uniform(0.7, 0.95, rows), 2),
            "Num_of_Delayed_Payment": np.round(rng.poisson(12, rows).astype(float), 1),
            "Changed_Credit_Limit": np.round(rng.normal(10, 6, rows), 2),
            "Num_Credit_Inquiries": rng.poisson(6, rows).astype(float),
            "Outstanding_Debt": debt,
            "Credit_Utilization_Ratio": np.round(rng.uniform(20, 45, rows), 3),
            "Credit_History_Age": np.round(rng.uniform(0, 400, rows), 1),
            "Total_EMI_per_month": np.round(rng.exponential(100, rows), 2),
            "Amount_invested_monthly": np.round(rng.exponential(200, rows), 2),
            "Monthly_Balance": np.round(rng.normal(400, 200, rows), 2),
            "Occupation": rng.choice(OCCUPATIONS, rows),
            "Credit_Mix": mix,
            "Payment_of_Min_Amount": minimum,
            "Payment_Behaviour": rng.choice(["Low_spent", "Medium_spent", "High_spent"], rows),
        }
    )
    risk = (
        delay / 30
        + debt / 1500
        + loans / 6
        - np.log(income / 40000)
        + (mix == "Bad") * 0.8
        - (mix == "Good") * 0.8
        + (minimum == "Yes") * 0.5
        + rng.normal(0, 0.4, rows)
    )
    score = 1 / (1 + np.exp(risk - 2.2))
    if gaps:
        for column in OPTIONAL:
            frame.loc[rng.random(rows) < 0.15, column] = None
    return frame, score


def three_classes(score):
    return np.digitize(score, [0.35, 0.65])


# --- what a version's folder holds ---------------------------------------------------------------------------------


def kind_of(series):
    if pd.api.types.is_bool_dtype(series.dtype):
        return "boolean"
    if pd.api.types.is_integer_dtype(series.dtype):
        return "long"
    return "double" if pd.api.types.is_float_dtype(series.dtype) else "string"


def columns_signature(frame, optional=()):
    return [
        {"type": kind_of(series), "name": name, "required": name not in optional}
        for name, series in frame.items()
    ]


def plain(value):
    """A cell as JSON has it: a gap is null."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def records(frame):
    return [[plain(value) for value in row] for row in frame.astype(object).to_numpy()]


def write_json(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


MLMODEL = """\
artifact_path: mlflow-artifacts:/1/models/m-{ident}/artifacts
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_session_options: null
    onnx_version: {onnx_version}
    providers:
    - CUDAExecutionProvider
    - CPUExecutionProvider
  python_function:
    data: model.onnx
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.onnx
    python_version: 3.11.7
is_signature_from_type_hint: false
mlflow_version: 3.17.2
model_id: m-{ident}
model_size_bytes: {size}
model_uuid: m-{ident}
prompts: null
run_id: {ident}
saved_input_example_info:
  artifact_path: input_example.json
  pandas_orient: split
  serving_input_path: serving_input_example.json
  type: dataframe
signature:
  inputs: '{inputs}'
  outputs: '{outputs}'
  params: null
type_hint_from_example: false
utc_time_created: '2026-01-01 00:00:00.000000'
"""


def write_version(folder, model, signature, example, tensor=None):
    """A version's folder as `mlflow.onnx.log_model` leaves it. `example` is a frame, or rows of the tensor `tensor`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Some exporters put a random name here.
    model.graph.name = folder.name
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(data)
    outputs = [
        {"name": output.name, "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1]}}
        for output in model.graph.output
    ]
    ident = f"{int.from_bytes(folder.name.encode()[:8], 'big'):032x}"
    quoted = {"inputs": json.dumps(signature), "outputs": json.dumps(outputs)}
    text = MLMODEL.format(
        ident=ident,
        onnx_version=onnx.__version__,
        size=len(data),
        **{key: value.replace("'", "''") for key, value in quoted.items()},
    )
    (folder / "MLmodel").write_text(text)
    if tensor is None:
        split = {"columns": list(example.columns), "data": records(example)}
        write_json(folder / "input_example.json", split)
        write_json(folder / "serving_input_example.json", {"dataframe_split": split})
    else:
        write_json(folder / "input_example.json", {tensor: example.tolist()})
        write_json(folder / "serving_input_example.json", {"inputs": {tensor: example.tolist()}})


# --- what Python answers -------------------------------------------------------------------------------------------


def by_column(model, frame):
    """One `[n, 1]` tensor per column, as the graph declares it."""
    feeds = {}
    for graph_input in model.graph.input:
        column = frame[graph_input.name]
        element = graph_input.type.tensor_type.elem_type
        if element == TensorProto.STRING:
            values = column.fillna("").astype(object).to_numpy()
        else:
            values = column.to_numpy().astype(helper.tensor_dtype_to_np_dtype(element))
        feeds[graph_input.name] = values.reshape(-1, 1)
    return feeds


def dense(model, frame):
    """One `[n, F]` float tensor."""
    return {model.graph.input[0].name: frame.to_numpy().astype(np.float32)}


def answers(model, feeds):
    """`(classes or None, predictions, probabilities or None)`, every number with the bits of the answer."""
    options = onnxruntime.SessionOptions()
    # As the gateway runs it; several threads add up in another order.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds)
    if len(outputs) == 1:
        return None, [float(value) for value in outputs[0].reshape(-1)], None
    labels, scores = outputs
    if isinstance(scores, list):
        classes = list(scores[0])
        scores = [[float(row[name]) for name in classes] for row in scores]
    else:
        classes = None
        scores = [[float(value) for value in row] for row in scores]
    return classes, labels.tolist(), scores


def write_expected(folder, rows, columns, answered):
    classes, predictions, probabilities = answered
    expected = {
        "columns": columns,
        "rows": rows,
        "classes": classes,
        "predictions": predictions,
        "probabilities": probabilities,
    }
    write_json(folder / "expected.json", expected)


def fixture(kind, model, frame, feed, optional=(), classes=None, sent=None):
    """A version with columns. `sent` is what callers send where it differs from the columns."""
    folder = FIXTURES / kind
    write_version(folder, model, columns_signature(frame, optional), frame.head(3))
    found, predictions, probabilities = answers(model, feed(model, frame))
    sent = frame if sent is None else sent
    write_expected(folder, records(sent), list(sent.columns), (found or classes, predictions, probabilities))


# --- the kinds -----------------------------------------------------------------------------------------------------


def pipeline(classifier, floats, integers, texts):
    scaled = Pipeline([("fill", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    return Pipeline(
        [
            (
                "columns",
                ColumnTransformer(
                    [
                        ("floats", scaled, floats),
                        ("integers", StandardScaler(), integers),
                        ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
                    ]
                ),
            ),
            ("classifier", classifier),
        ]
    )


def typed_inputs(frame):
    types = {"long": Int64TensorType([None, 1]), "double": FloatTensorType([None, 1]), "string": StringTensorType([None, 1])}
    return [(name, types[kind_of(series)]) for name, series in frame.items()]


def fill_texts(frame):
    """Training sees a missing text as the gateway sends it: empty."""
    return frame.assign(**{name: frame[name].fillna("").astype(object) for name in TEXTS if name in frame})


def credit_pipeline(classifier, labels, columns, zipmap, seed=SEED):
    """A whole pipeline over `columns`, exported with one input per column."""
    frame, score = customers(TRAINING_ROWS, seed, gaps=True)
    frame = fill_texts(frame[columns])
    chosen = [[name for name in group if name in columns] for group in (FLOATS, INTEGERS, TEXTS)]
    model = pipeline(classifier, *chosen).fit(frame, labels(score))
    options = {id(model): {"zipmap": zipmap}}
    return to_onnx(model, initial_types=typed_inputs(frame), target_opset=OPSET, options=options)


def expected_customers(columns, gaps=True):
    frame, score = customers(EXPECTED_ROWS, SEED + 1, gaps=gaps)
    frame = frame[columns]
    # A category that training never saw.
    if "Occupation" in columns:
        frame.loc[3, "Occupation"] = "Astronaut"
    return frame, score


ALL = INTEGERS + FLOATS + TEXTS
NAMED = np.array(["Poor", "Standard", "Good"])


def make_pipeline():
    model = credit_pipeline(
        GradientBoostingClassifier(n_estimators=15, max_depth=3, random_state=0),
        lambda score: NAMED[three_classes(score)],
        ALL,
        zipmap=False,
    )
    frame, _ = expected_customers(ALL)
    fixture("pipeline", model, frame, by_column, OPTIONAL, classes=sorted(NAMED.tolist()))


def make_forest_zipmap():
    columns = ["Age", "Interest_Rate", "Annual_Income", "Outstanding_Debt", "Credit_Mix", "Payment_of_Min_Amount"]
    model = credit_pipeline(
        RandomForestClassifier(n_estimators=12, max_depth=5, random_state=0),
        lambda score: (score > 0.5).astype(int),
        columns,
        zipmap=True,
    )
    frame, _ = expected_customers(columns)
    fixture("forest-zipmap", model, frame, by_column, OPTIONAL)


def make_text_classes():
    columns = ["Age", "Annual_Income", "Outstanding_Debt", "Credit_Mix"]
    model = credit_pipeline(
        RandomForestClassifier(n_estimators=8, max_depth=4, random_state=0),
        lambda score: np.where(score > 0.5, "good", "bad"),
        columns,
        zipmap=True,
    )
    frame, _ = expected_customers(columns)
    fixture("text-classes", model, frame, by_column, OPTIONAL)


def numbers(rows, seed):
    frame, score = customers(rows, seed)
    return frame[INTEGERS + FLOATS], score


def make_xgboost():
    frame, score = numbers(TRAINING_ROWS, SEED)
    model = XGBClassifier(n_estimators=60, max_depth=4, random_state=0, n_jobs=1)
    model.fit(frame.to_numpy(), (score > 0.5).astype(int))
    exported = convert_xgboost(model, initial_types=[("input", ToolsFloat([None, frame.shape[1]]))], target_opset=15)
    frame, _ = numbers(EXPECTED_ROWS, SEED + 1)
    frame = frame.assign(Monthly_Inhand_Salary=frame["Monthly_Inhand_Salary"].where(frame.index % 7 != 0))
    fixture("xgboost", exported, frame, dense, OPTIONAL, classes=[0, 1])


def make_lightgbm():
    frame, score = numbers(TRAINING_ROWS, SEED)
    model = LGBMClassifier(n_estimators=15, num_leaves=8, random_state=0, n_jobs=1, deterministic=True, verbose=-1)
    model.fit(frame.to_numpy(), three_classes(score))
    exported = convert_lightgbm(model, initial_types=[("input", ToolsFloat([None, frame.shape[1]]))], target_opset=15)
    frame, _ = numbers(EXPECTED_ROWS, SEED + 1)
    fixture("lightgbm", exported, frame, dense)


def make_logistic():
    frame, score = numbers(TRAINING_ROWS, SEED)
    model = Pipeline([("scale", StandardScaler()), ("classifier", LogisticRegression(max_iter=500))])
    model.fit(frame.to_numpy(), three_classes(score))
    kind = [("X", FloatTensorType([None, frame.shape[1]]))]
    exported = to_onnx(model, initial_types=kind, target_opset=OPSET, options={id(model): {"zipmap": False}})
    frame, _ = numbers(EXPECTED_ROWS, SEED + 1)
    fixture("logistic", exported, frame, dense, classes=[0, 1, 2])


def make_neural():
    """A classifier that keeps its classes in an initializer instead of an attribute."""
    frame, score = numbers(TRAINING_ROWS, SEED)
    model = Pipeline(
        [("scale", StandardScaler()), ("classifier", MLPClassifier(hidden_layer_sizes=(8,), max_iter=60, random_state=0))]
    )
    model.fit(frame.to_numpy(), NAMED[three_classes(score)])
    kind = [("X", FloatTensorType([None, frame.shape[1]]))]
    exported = to_onnx(model, initial_types=kind, target_opset=OPSET, options={id(model): {"zipmap": False}})
    frame, _ = numbers(EXPECTED_ROWS, SEED + 1)
    fixture("neural", exported, frame, dense, classes=sorted(NAMED.tolist()))


def make_regression():
    frame, score = numbers(TRAINING_ROWS, SEED)
    model = GradientBoostingRegressor(n_estimators=20, max_depth=3, random_state=0)
    model.fit(frame.to_numpy(), 300 + 550 * score)
    kind = [("X", FloatTensorType([None, frame.shape[1]]))]
    exported = to_onnx(model, initial_types=kind, target_opset=OPSET)
    frame, _ = numbers(EXPECTED_ROWS, SEED + 1)
    fixture("regression", exported, frame, dense)


def make_one_hot():
    """Trained on what `get_dummies` makes; callers send the category."""

    def encode(frame):
        dummies = pd.get_dummies(frame["Occupation"].astype(pd.CategoricalDtype(OCCUPATIONS)), prefix="Occupation")
        return pd.concat([frame[["Age", "Annual_Income", "Outstanding_Debt"]], dummies], axis=1)

    frame, score = customers(TRAINING_ROWS, SEED)
    # The occupation must matter here.
    score = score + 0.3 * (frame["Occupation"] == "Doctor") - 0.3 * (frame["Occupation"] == "Mechanic")
    encoded = encode(frame)
    model = RandomForestClassifier(n_estimators=10, max_depth=5, random_state=0)
    model.fit(encoded.to_numpy().astype(np.float32), (score > 0.5).astype(int))
    kind = [("X", FloatTensorType([None, encoded.shape[1]]))]
    exported = to_onnx(model, initial_types=kind, target_opset=OPSET, options={id(model): {"zipmap": False}})
    frame, _ = customers(EXPECTED_ROWS, SEED + 1)
    frame.loc[5, "Occupation"] = "Astronaut"
    sent = frame[["Age", "Annual_Income", "Outstanding_Debt", "Occupation"]]
    fixture("one-hot", exported, encode(frame), dense, classes=[0, 1], sent=sent)


# --- graphs written by hand ------------------------------------------------------------------------------------------


def graph(nodes, inputs, outputs, initializers=()):
    model = helper.make_model(
        helper.make_graph(nodes, "made-by-hand", inputs, outputs, list(initializers)),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)],
        producer_name="modelgate",
    )
    model.ir_version = 9
    return model


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def perceptron(output):
    rng = np.random.default_rng(SEED)

    def weights(name, *shape):
        return numpy_helper.from_array(rng.normal(0, 0.7, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], [output]),
    ]
    initializers = [weights("w1", 4, 8), weights("b1", 8), weights("w2", 8, 1), weights("b2", 1)]
    return graph(nodes, [floats("input", "n", 4)], [floats(output, "n", 1)], initializers)


def tensor_signature(name, width):
    return [{"name": name, "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, width]}}]


def make_sigmoid():
    """What Keras exports for two classes: one probability, named columns."""
    rng = np.random.default_rng(SEED + 2)
    values = np.round(rng.normal(0, 1, (EXPECTED_ROWS, 4)), 4)
    frame = pd.DataFrame(values, columns=["income", "debt", "age", "loans"])
    fixture("sigmoid", perceptron("prob"), frame, dense)


def make_tensor():
    """The same network with a tensor for a signature."""
    rng = np.random.default_rng(SEED + 3)
    values = np.round(rng.normal(0, 1, (EXPECTED_ROWS, 4)), 4)
    model = perceptron("prob")
    folder = FIXTURES / "tensor"
    write_version(folder, model, tensor_signature("input", 4), values[:3], tensor="input")
    answered = answers(model, {"input": values.astype(np.float32)})
    write_expected(folder, values.tolist(), [f"input_{element}" for element in range(4)], answered)


def make_sum():
    """Base plus the sum of a row. Tests put another base into its place to make versions that can be told apart."""
    base = onnx.numpy_helper.from_array(np.array([[12345.0]], dtype=np.float32), "base")
    axes = onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    nodes = [
        helper.make_node("ReduceSum", ["row", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "base"], ["total"]),
    ]
    model = graph(nodes, [floats("row", None, 3)], [floats("total", None, 1)], [base, axes])
    frame = pd.DataFrame({"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, 6.0]})
    write_version(FIXTURES / "sum", model, columns_signature(frame), frame)


def make_broken():
    """Graphs that load and then misbehave."""
    one = [floats("x", "n", 1)]
    zero = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["y"]),
    ]
    write_broken("not-finite", graph(zero, one, [floats("y", "n", 1)]))

    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "axes")
    total = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)]
    write_broken("wrong-rows", graph(total, one, [floats("y", "m", 1)], [axes]))

    write_broken("endless", endless(one))


def endless(inputs):
    """Counts to the largest `x` it is sent."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Add", ["sum", "step"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("sum", "n", 1),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), floats("next", "n", 1)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Sub", ["x", "x"], ["start"]),
        helper.make_node("Loop", ["turns", "", "start"], ["y"], body=body),
    ]
    step = numpy_helper.from_array(np.array([[1.0]], dtype=np.float32), "step")
    return graph(nodes, inputs, [floats("y", "n", 1)], [step])


def write_broken(kind, model):
    signature = [{"type": "float", "name": "x", "required": True}]
    write_version(FIXTURES / kind, model, signature, pd.DataFrame({"x": [1.0, 2.0]}))


def make_self_test():
    """Two small models whose answers are known: one that some libraries get wrong, one with texts."""
    SELF_TEST.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    points = rng.normal(0, 1, (300, 4)).astype(np.float32)
    model = RandomForestClassifier(n_estimators=4, max_depth=3, random_state=0)
    model.fit(points, (points[:, 0] + points[:, 1] > 0).astype(int))
    kind = [("x", FloatTensorType([None, 4]))]
    forest = to_onnx(model, initial_types=kind, target_opset=OPSET, options={id(model): {"zipmap": False}})
    rows = np.array([[1.5, 1.0, 0.0, 0.0], [-1.5, -1.0, 0.5, 0.5], [0.25, -0.25, 1.0, -1.0]], dtype=np.float32)
    (SELF_TEST / "forest.onnx").write_bytes(forest.SerializeToString(deterministic=True))
    known("forest", model.predict_proba(rows), answers(forest, {"x": rows}))

    frame = pd.DataFrame({"amount": rng.normal(0, 1, 300), "grade": rng.choice(["high", "low", "middle"], 300)})
    labels = (frame["amount"] + (frame["grade"] == "high") - (frame["grade"] == "low") > 0).astype(int)
    steps = [("amount", StandardScaler(), ["amount"]), ("grade", OneHotEncoder(handle_unknown="ignore"), ["grade"])]
    model = Pipeline([("columns", ColumnTransformer(steps)), ("classifier", LogisticRegression())])
    model.fit(frame, labels)
    kinds = [("amount", FloatTensorType([None, 1])), ("grade", StringTensorType([None, 1]))]
    texts = to_onnx(model, initial_types=kinds, target_opset=OPSET, options={id(model): {"zipmap": False}})
    rows = pd.DataFrame({"amount": [0.5, 0.5, 0.5], "grade": ["high", "low", "unheard-of"]})
    (SELF_TEST / "texts.onnx").write_bytes(texts.SerializeToString(deterministic=True))
    known("texts", model.predict_proba(rows), answers(texts, by_column(texts, rows)))


def known(name, reference, answered):
    """Prints what src/model/runtime.rs has to know, after asking scikit-learn."""
    _, labels, probabilities = answered
    np.testing.assert_allclose(probabilities, reference, atol=1e-5)
    print(f"self-test {name}: labels {labels}, positive {[row[1] for row in probabilities]}")


# --- the demo --------------------------------------------------------------------------------------------------------


def make_demo():
    columns = [
        "Age",
        "Annual_Income",
        "Num_of_Loan",
        "Delay_from_due_date",
        "Outstanding_Debt",
        "Credit_History_Age",
        "Occupation",
        "Credit_Mix",
        "Payment_of_Min_Amount",
    ]
    shutil.rmtree(DEMO, ignore_errors=True)
    frame, _ = customers(3, SEED + 1)
    for version, trees, seed in ((1, 12, SEED), (2, 20, SEED + 7)):
        model = credit_pipeline(
            GradientBoostingClassifier(n_estimators=trees, max_depth=3, random_state=version),
            lambda score: NAMED[three_classes(score)],
            columns,
            zipmap=False,
            seed=seed,
        )
        signature = columns_signature(frame[columns], ["Credit_Mix"])
        write_version(DEMO / str(version), model, signature, frame[columns])
    (DEMO / "aliases.toml").write_text("champion = 1\n")


KINDS = [
    make_pipeline,
    make_forest_zipmap,
    make_text_classes,
    make_xgboost,
    make_lightgbm,
    make_logistic,
    make_neural,
    make_regression,
    make_one_hot,
    make_sigmoid,
    make_tensor,
    make_sum,
    make_broken,
    make_self_test,
    make_demo,
]


def main():
    # Exporters walk sets of names: without this, every run writes other bytes.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for make in KINDS:
        make()
    for path in sorted([*FIXTURES.rglob("*.onnx"), *DEMO.rglob("*.onnx"), *SELF_TEST.rglob("*.onnx")]):
        print(f"{path.stat().st_size:7} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
