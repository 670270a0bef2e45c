//! Configuration from outside: what users write, what they are told, what the binary says.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use modelgate::auth::Access;
use modelgate::capture;
use modelgate::config::{Flags, Loaded, Purpose, Sources, load};
use modelgate::model::Version;
use modelgate::model::features::DefaultValue;
use modelgate::model::outputs::Rule;
use modelgate::quota::{Limit, Location, Period, Throttle, Unit};
use modelgate::registry::{self, Credentials, Select};
use secrecy::ExposeSecret;
use tempfile::TempDir;

/// A configuration in the making.
struct Setup {
    folder: TempDir,
    sources: Sources,
}

impl Setup {
    fn new(file: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.toml");
        fs::write(&path, file).unwrap();
        let sources = Sources {
            file: Some(path),
            env: Vec::new(),
            flags: Flags::default(),
            processors: NonZeroUsize::new(4).unwrap(),
            purpose: Purpose::Serve,
        };
        Self { folder, sources }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flags(mut self, flags: Flags) -> Self {
        self.sources.flags = flags;
        self
    }

    fn load(&self) -> Loaded {
        load(&self.sources).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Every mistake, a line each, the file called `gate.toml`.
    fn mistakes(&self) -> String {
        let errors = load(&self.sources).expect_err("the configuration is wrong and was taken").to_string();
        self.without_folder(&errors)
    }

    fn effective(&self) -> String {
        self.without_folder(&self.load().effective.to_string())
    }

    fn without_folder(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

const MODEL: &str = "[[model]]\nname = \"m\"\n";

/// The mistakes in a file, which gets a model at its end if it has none.
fn mistakes_in(file: &str) -> String {
    let model = if file.contains("model") { "" } else { MODEL };
    Setup::new(&format!("{file}\n{model}")).mistakes()
}

/// What is wrong, and after the arrow what users are told.
const WRONG: &str = r#"
data_dir = ""
=> gate.toml:1: data_dir: found "", expected a path

datadir = "x"
=> gate.toml:1: datadir: unknown key, did you mean `data_dir`?

data_dir = 5
=> gate.toml:1: data_dir: found 5, expected a path

onnxruntime = true
=> gate.toml:1: onnxruntime: found true, expected a path

server = 5
=> gate.toml:1: server: found 5, expected a table

[server]
listen = "8080"
=> gate.toml:2: server.listen: found "8080", expected an address and port, such as "127.0.0.1:8080" or "[::1]:8080"

[server]
listen = "localhost:8080"
=> gate.toml:2: server.listen: found "localhost:8080", expected an address and port, such as "127.0.0.1:8080" or "[::1]:8080"

[server]
listen = 8080
=> gate.toml:2: server.listen: found 8080, expected an address and port, such as "127.0.0.1:8080" or "[::1]:8080"

[server]
admin_listen = "0.0.0.0:8081"
=> gate.toml:2: server.admin_listen: found 0.0.0.0:8081, expected an address of this machine only, such as "127.0.0.1:8081": the admin address asks for no key

[server]
listen = "127.0.0.1:9"
admin_listen = "127.0.0.1:9"
=> gate.toml:3: server.admin_listen: expected another address than `server.listen`

[server]
error_style = "apigateway"
=> gate.toml:2: server.error_style: found "apigateway", expected "problem" or "api-gateway"

[server]
error_style = "html"
=> gate.toml:2: server.error_style: found "html", expected "problem" or "api-gateway"

[server]
max_body = "2 potatoes"
=> gate.toml:2: server.max_body: found "2 potatoes", expected a size from "1KiB" to "1GiB"

[server]
max_body = 2048
=> gate.toml:2: server.max_body: found 2048, expected a size from "1KiB" to "1GiB"

[server]
max_body = "2GiB"
=> gate.toml:2: server.max_body: found "2GiB", expected a size from "1KiB" to "1GiB"

[server]
deadline = "0s"
=> gate.toml:2: server.deadline: found "0s", expected a time from "1s" to "1h"

[server]
deadline = 10
=> gate.toml:2: server.deadline: found 10, expected a time from "1s" to "1h"

[server]
grace = "-1s"
=> gate.toml:2: server.grace: found "-1s", expected a time from "0s" to "1h"

[server]
max_depth = 128
=> gate.toml:2: server.max_depth: found 128, expected a whole number from 3 to 127

[server]
max_rows = 0
=> gate.toml:2: server.max_rows: found 0, expected a whole number from 1 to 1000000

[server]
max_rows = 99999999999999999999999999999999999999999999
=> gate.toml:2: server.max_rows: found 100000000000000000000000000000000000000000000, expected a whole number from 1 to 1000000

[server]
max_rows = 2.5
=> gate.toml:2: server.max_rows: found 2.5, expected a whole number from 1 to 1000000

[server]
max_connections = "many"
=> gate.toml:2: server.max_connections: found "many", expected a whole number from 1 to 1000000

[server]
liste = "127.0.0.1:1"
zebra = 1
=> gate.toml:2: server.liste: unknown key, did you mean `listen`?
gate.toml:3: server.zebra: unknown key

[sever]
listen = "127.0.0.1:1"
=> gate.toml:1: sever: unknown key, did you mean `server`?

[engine]
slots = 0
=> gate.toml:2: engine.slots: found 0, expected a whole number from 1 to 1024

[registry]
poll_interval = "4s"
=> gate.toml:2: registry.poll_interval: found "4s", expected a time from "5s" to "24h"

[registry]
uri = "dagshub.com/u/r.mlflow"
=> gate.toml:2: registry.uri: found "dagshub.com/u/r.mlflow", expected "http://…", "https://…" or "file:directory"

[registry]
uri = "databricks"
=> gate.toml:2: registry.uri: found "databricks", expected "http://…", "https://…" or "file:directory"

[registry]
uri = "http://u:secret@host?x"
=> gate.toml:2: registry.uri: found "http://***@host?x", expected "http://…", "https://…" or "file:directory"

[registry]
uri = "file:"
=> gate.toml:2: registry.uri: found "file:", expected "http://…", "https://…" or "file:directory"

[registry]
username = "me"
=> gate.toml:2: registry.username: expected a `password` or `password_file` with it

[registry]
password = "secret"
=> gate.toml:2: registry.password: expected a `username` with it

[registry]
username = "me"
password = 12345
=> gate.toml:3: registry.password: found a number, expected text

[registry]
token = "a"
token_file = "gate.toml"
=> gate.toml:3: registry.token_file: expected either this or `token`, not both
gate.toml:3: registry.token_file: cannot read `gate.toml`: No such file or directory (os error 2)

[registry]
token_file = "no/such/file"
=> gate.toml:2: registry.token_file: cannot read `no/such/file`: No such file or directory (os error 2)

[registry]
max_bytes = "0B"
=> gate.toml:2: registry.max_bytes: found "0B", expected a size from "1KiB" to "1TiB"

[model]
name = "m"
=> gate.toml:1: model: expected a list of tables, each written as [[model]]

model = ["m"]
=> gate.toml:1: model: expected a list of tables, each written as [[model]]

[[model]]
select = "latest"
=> gate.toml:1: model[0].name: found nothing, expected 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit

[[model]]
name = "a/b"
=> gate.toml:2: model[0].name: found "a/b", expected 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit

[[model]]
name = "m"
[[model]]
name = "m"
=> gate.toml:4: model[1].name: there is another model with the name "m"

[[model]]
name = "m"
registered_model = "../m"
=> gate.toml:3: model[0].registered_model: found "../m", expected a name without / \ : that does not begin with a dot

[[model]]
name = "m"
select = "champion"
=> gate.toml:3: model[0].select: found "champion", expected "alias:<name>", "latest", "stage:Production" (Staging, Archived, None) or "version:<number>"

[[model]]
name = "m"
select = "alias:latest"
=> gate.toml:3: model[0].select: found "alias:latest", expected "alias:<name>", "latest", "stage:Production" (Staging, Archived, None) or "version:<number>"

[[model]]
name = "m"
select = "stage:Prod"
=> gate.toml:3: model[0].select: found "stage:Prod", expected "alias:<name>", "latest", "stage:Production" (Staging, Archived, None) or "version:<number>"

[[model]]
name = "m"
select = "version:0"
=> gate.toml:3: model[0].select: found "version:0", expected "alias:<name>", "latest", "stage:Production" (Staging, Archived, None) or "version:<number>"

[[model]]
name = "m"
labels = { "0" = 1 }
=> gate.toml:3: model[0].labels.0: found 1, expected text

[[model]]
name = "m"
threshold = 1.5
=> gate.toml:3: model[0].threshold: found 1.5, expected a number from 0 to 1

[[model]]
name = "m"
threshold = nan
=> gate.toml:3: model[0].threshold: found NaN, expected a number from 0 to 1

[[model]]
name = "m"
threshold = 0.5
bands = [["Low", 0.5], ["High"]]
=> gate.toml:4: model[0].bands: expected either this or `threshold`, not both

[[model]]
name = "m"
bands = [["Low", 0.7], ["Medium", 0.35], ["High"]]
=> gate.toml:3: model[0].bands: found a list, expected bands with ascending upper edges and a last one without, such as [["Low", 0.35], ["High"]]

[[model]]
name = "m"
bands = [["Low", 0.7], ["High", 0.9]]
=> gate.toml:3: model[0].bands: found a list, expected bands with ascending upper edges and a last one without, such as [["Low", 0.35], ["High"]]

[[model]]
name = "m"
bands = [["High"]]
=> gate.toml:3: model[0].bands: found a list, expected bands with ascending upper edges and a last one without, such as [["Low", 0.35], ["High"]]

[[model]]
name = "m"
bands = [
  ["Low", "0.7"],
  ["High"],
]
=> gate.toml:4: model[0].bands[0]: found a list, expected a label and its upper edge, such as ["Low", 0.35]

[[model]]
name = "m"
[model.features.rename]
idade = "Age"
renda = 3
=> gate.toml:5: model[0].features.rename.renda: found 3, expected text

[registry]
uri = "http://me:hush@host"
token = ["hush"]
=> gate.toml:3: registry.token: found a list, expected text

[plans.a]
rate = 1
[plans."b c"]
=> gate.toml:3: plans.b c: expected a plan's name of 1 to 64 of A-Z a-z 0-9 _ -

[[model]]
name = "m"
[model.features]
unseen = "ignore"
coerce = "yes"
renam = {}
=> gate.toml:4: model[0].features.unseen: found "ignore", expected "count" or "refuse"
gate.toml:5: model[0].features.coerce: found "yes", expected true or false
gate.toml:6: model[0].features.renam: unknown key, did you mean `rename`?

[[model]]
name = "m"
[model.features]
rename = { idade = 3 }
one_hot = ["a", ""]
=> gate.toml:4: model[0].features.rename.idade: found 3, expected text
gate.toml:5: model[0].features.one_hot[1]: found "", expected text

[[model]]
name = "m"
[model.features]
default = { a = 2026-01-01 }
=> gate.toml:4: model[0].features.default.a: found 2026-01-01, expected a text, a finite number, true or false

[[model]]
name = "m"
[model.feature]
coerce = true
=> gate.toml:3: model[0].feature: unknown key, did you mean `features`?

[[model]]
name = "m"
[plans.basic]
models = ["n"]
=> gate.toml:4: plans.basic.models: there is no [[model]] with the name "n"

[[model]]
name = "m"
[plans.basic]
models = []
=> gate.toml:4: plans.basic.models: found an empty list, expected a model (leave the key out to allow all)

plans = 3
=> gate.toml:1: plans: found 3, expected a table for each name

[plans]
basic = 3
=> gate.toml:2: plans.basic: found 3, expected a table

[plans."a b"]
rate = 1
=> gate.toml:1: plans.a b: expected a plan's name of 1 to 64 of A-Z a-z 0-9 _ -

[plans.basic]
rate = 0
=> gate.toml:2: plans.basic.rate: found 0, expected a number from 0.001 to 1000000

[plans.basic]
burst = 5
=> gate.toml:2: plans.basic.burst: expected a `rate` with it

[drift]
baseline_rows = 100
threshold = 0
=> gate.toml:2: drift.baseline_rows: expected at least `min_rows`: with fewer there would never be a verdict
gate.toml:3: drift.threshold: found 0, expected a number from 0.001 to 10

[plans.basic]
quota = -1
period = "year"
unit = "bytes"
=> gate.toml:2: plans.basic.quota: found -1, expected a whole number from 1 to 9223372036854775807
gate.toml:3: plans.basic.period: found "year", expected "day", "week" or "month"
gate.toml:4: plans.basic.unit: found "bytes", expected "rows" or "requests"

[quota]
store = "dynamodb://table"
=> gate.toml:2: quota.store: found "dynamodb://table", expected "embedded" or "redis://host:6379": what was found comes in a later release

[quota]
store = "redis://host/users?protocol=3"
=> gate.toml:2: quota.store: found "redis://host/users?protocol=3", expected "embedded" or "redis://host:6379"

[quota]
store = "redis://host:6379"
namespace = "a b"
lease = 0
on_store_down = "retry"
[plans.vast]
quota = 9223372036854775807
=> gate.toml:2: quota.store: counts to 9007199254740992 at most, and the plan "vast" has more
gate.toml:3: quota.namespace: found "a b", expected 1 to 64 of A-Z a-z 0-9 . _ -
gate.toml:4: quota.lease: found 0, expected a whole number from 1 to 9007199254740992
gate.toml:5: quota.on_store_down: found "retry", expected "lease", "closed" or "open"

[quota]
store = "mysql"
lease = 1
on_store_down = "open"
=> gate.toml:2: quota.store: found "mysql", expected "embedded" or "redis://host:6379"
gate.toml:3: quota.lease: expected a shared `store` with it, such as "redis://host:6379"
gate.toml:4: quota.on_store_down: expected "lease" with the embedded store; the others need a shared `store`

[keys]
shared = true
pepper_file = 7
=> gate.toml:2: keys.shared: expected a Redis in `quota.store` with it, which is where the keys are shared
gate.toml:3: keys.pepper_file: found 7, expected a path

[metrics]
max_series = 0
=> gate.toml:2: metrics.max_series: found 0, expected a whole number from 1 to 1000000

[metrics.cloudwatch]
namespace = "AWS/Lambda"
interval = "1s"
=> gate.toml:2: metrics.cloudwatch.namespace: found "AWS/Lambda", expected 1 to 255 printable ASCII characters, not beginning with ":" or "AWS/"
gate.toml:3: metrics.cloudwatch.interval: found "1s", expected a time from "10s" to "1h"

[metrics.cloudwatch]
mode = "thin"
schedules = { "credit-score" = "nightly" }
=> gate.toml:2: metrics.cloudwatch.mode: found "thin", expected "full", "lean" or "sagemaker"
gate.toml:3: metrics.cloudwatch.schedules: expected `mode = "sagemaker"` with it

[metrics.cloudwatch]
mode = "sagemaker"
schedules = { "credit-score" = "each night" }
=> gate.toml:3: metrics.cloudwatch.schedules.credit-score: found "each night", expected a schedule's name of 1 to 63 of A-Z a-z 0-9 -

[metrics.cloudwatch]
mode = "sagemaker"
schedules = { "-" = "nightly" }
=> gate.toml:3: metrics.cloudwatch.schedules: `-` is not a model name: use 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit

[metrics.cloudwatch]
[metrics.emf]
=> gate.toml:2: metrics.emf: expected another namespace than metrics.cloudwatch: CloudWatch would count everything twice

[metrics.otlp]
=> gate.toml:1: metrics.otlp: expected an `endpoint`, or OTEL_EXPORTER_OTLP_ENDPOINT in the environment

[metrics.otlp]
endpoint = "localhost:4318"
mode = "sagemaker"
=> gate.toml:2: metrics.otlp.endpoint: found "localhost:4318", expected an address, such as "http://localhost:4318/v1/metrics"
gate.toml:3: metrics.otlp.mode: found "sagemaker", expected "full" or "lean"

[capture]
=> gate.toml:1: capture.sink: found nothing, expected "s3://bucket/prefix" (3 to 63 of a-z 0-9 . - for the bucket) or "file:directory"

[capture]
sink = "s3://B/x"
=> gate.toml:2: capture.sink: found "s3://B/x", expected "s3://bucket/prefix" (3 to 63 of a-z 0-9 . - for the bucket) or "file:directory"

[capture]
sink = "/samples"
format = "avro"
rate = 1.5
=> gate.toml:2: capture.sink: found "/samples", expected "s3://bucket/prefix" (3 to 63 of a-z 0-9 . - for the bucket) or "file:directory"
gate.toml:3: capture.format: found "avro", expected "parquet", "jsonl" or "csv"
gate.toml:4: capture.rate: found 1.5, expected a number from 0 to 1

[capture]
sink = "file:x"
flush = { rows = 0, age = "1 day", size = 3 }
=> gate.toml:3: capture.flush.rows: found 0, expected a whole number from 1 to 1000000
gate.toml:3: capture.flush.age: found "1 day", expected a time from "1s" to "24h"
gate.toml:3: capture.flush.size: unknown key

[capture]
sink = "file:x"
flush = 5
redact = "SSN"
spool_max = "1KiB"
bucket = { Income = 0, Age = 5 }
=> gate.toml:3: capture.flush: found 5, expected a table
gate.toml:4: capture.redact: found "SSN", expected a list of texts, such as ["a", "b"]
gate.toml:5: capture.spool_max: found "1KiB", expected a size from "1MiB" to "1TiB"
gate.toml:6: capture.bucket.Income: found 0, expected a number above 0

[capture]
sink = "file:x"
redact = ["a"]
hash = ["a", "b"]
bucket = { b = 5, c = 5 }
=> gate.toml:4: capture.hash: "a" is in `redact` too, expected one of them
gate.toml:5: capture.bucket: "b" is in `redact` or `hash` too, expected one of them

[telemetry]
log_format = "xml"
log_filter = "a=b=c"
=> gate.toml:2: telemetry.log_format: found "xml", expected "text" or "json"
gate.toml:3: telemetry.log_filter: found "a=b=c", expected a log filter, such as "info,modelgate=debug"

[telemetry]
otlp_endpoint = "http://localhost:4318"
=> gate.toml:2: telemetry.otlp_endpoint: unknown key

data_dir = "a"
data_dir = "b"
=> gate.toml:2: column 1: duplicate key

data_dir = data
=> gate.toml:1: column 12: string values must be quoted, expected literal string

[server
listen = "127.0.0.1:1"
=> gate.toml:1: column 8: unclosed table, expected `]`

a.b = 1
a = 2
=> gate.toml:2: column 1: duplicate key
"#;

#[test]
fn every_mistake_names_its_place_and_its_cure() {
    let cases = WRONG.trim().split("\n\n").map(|case| case.split_once("\n=> ").unwrap());
    let told: Vec<String> = cases.map(|(file, _)| format!("{file}\n=> {}", mistakes_in(file))).collect();
    assert!(told.len() > 40, "the table has lost its cases");
    assert_eq!(told.join("\n\n"), WRONG.trim());
}

#[test]
fn all_mistakes_of_all_layers_are_told_at_once_in_the_order_of_the_layers() {
    let setup = Setup::new("[server]\nmax_rows = 0\nlisten = 1\n[[model]]\nname = \"m\"\n")
        .env("MODELGATE__SERVER__MAX_DEPTH", "none")
        .env("MODELGATE__SERVER__MAX_ROW", "1")
        .env("MODELGATE__SERVER__", "1")
        .env("MODELGATE__REGISTRY__TIMEOUT", "30")
        .env("RUST_LOG", "a=b=c")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")
        .env("MODELGATE__METRICS", "[1, 2]")
        .flags(Flags { admin_listen: Some("[::]:1".to_owned()), models: vec!["a b".to_owned()], ..Flags::default() });
    let expected = r#"
gate.toml:2: server.max_rows: found 0, expected a whole number from 1 to 1000000
gate.toml:3: server.listen: found 1, expected an address and port, such as "127.0.0.1:8080" or "[::1]:8080"
MODELGATE__METRICS: metrics: found "[1, 2]", expected a table
MODELGATE__REGISTRY__TIMEOUT: registry.timeout: found "30", expected a time from "1s" to "1h"
MODELGATE__SERVER__: expected a key, as in MODELGATE__SERVER__LISTEN
MODELGATE__SERVER__MAX_DEPTH: server.max_depth: found "none", expected a whole number from 3 to 127
MODELGATE__SERVER__MAX_ROW: server.max_row: unknown key, did you mean `max_rows`?
OTEL_EXPORTER_OTLP_ENDPOINT: expected the address of a collector, such as "http://localhost:4318"
RUST_LOG: telemetry.log_filter: found "a=b=c", expected a log filter, such as "info,modelgate=debug"
--admin-listen: server.admin_listen: found [::]:1, expected an address of this machine only, such as "127.0.0.1:8081": the admin address asks for no key
--model: model[1].name: found "a b", expected 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit
"#;
    assert_eq!(setup.mistakes(), expected.trim());
}

#[test]
fn a_secret_is_never_in_a_mistake() {
    let told = Setup::new("[registry]\nuri = \"ftp://me:hush@host\"\npassword = [\"hush\"]\ntoken = \"\"")
        .env("MODELGATE__REGISTRY__TOKEN", "{ hush = 1 }")
        .mistakes();
    assert!(!told.contains("hush"), "{told}");
    assert!(told.contains("registry.uri") && told.contains("registry.token") && told.contains("registry.password"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_of_the_flag() {
    let mut setup = Setup::new(MODEL);
    setup.sources.file = Some("no/such/file.toml".into());
    let expected = "--config: cannot read `no/such/file.toml`: No such file or directory (os error 2)";
    assert_eq!(setup.mistakes(), expected);
}

#[test]
fn without_a_model_serving_is_a_mistake_and_making_keys_is_not() {
    let mut setup = Setup::new("[plans.basic]\nmodels = [\"m\"]\n");
    let expected = "\
gate.toml:2: plans.basic.models: there is no [[model]] with the name \"m\"
--model: no model is configured, expected `--model NAME@alias` or a [[model]] table in the file of --config";
    assert_eq!(setup.mistakes(), expected);
    setup.sources.purpose = Purpose::Keys;
    assert!(setup.load().config.auth.plans.contains_key("basic"));
}

/// One of everything, some of it from the environment and from flags.
fn everything() -> Setup {
    Setup::new(
        r#"data_dir = "state"
onnxruntime = "lib/libonnxruntime.so"
[server]
listen = "0.0.0.0:80"
max_body = "4MiB"
deadline = "1m 30s"
[registry]
uri = "https://me:p%40ss@dagshub.com/u/r.mlflow"
[[model]]
name = "credit-score"
select = "stage:production"
labels = { "0" = "Poor", "1" = "Good" }
threshold = 0.25
[model.features]
rename = { idade = "Age" }
default = { Age = 40, Income = 1.5, Employed = true, Occupation = "none" }
one_hot = ["Occupation"]
unseen = "refuse"
coerce = false
[[model]]
name = "churn"
registered_model = "Churn, all countries"
bands = [["Low", 0.35], ["Medium", 0.70], ["High"]]
capture = { rate = 0.25 }
[plans.basic]
rate = 2.5
quota = 10_000
period = "month"
models = ["credit-score"]
[plans.free]
unit = "requests"
[metrics.cloudwatch]
[capture]
sink = "s3://samples/a/b/"
flush = { age = "5m" }
format = "jsonl"
hash = ["Customer"]
bucket = { Income = 1000, Age = 2.5 }
"#,
    )
    .env("MODELGATE__SERVER__MAX_ROWS", "7")
    .env("MODELGATE__CAPTURE__REDACT", r#"["SSN"]"#)
    .env("MODELGATE__SERVER__LISTEN", "[::1]:8080")
    .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hush@localhost:4318/")
    .env("OTEL_SERVICE_NAME", "gate")
    .env("RUST_LOG", "debug")
    .env("MLFLOW_TRACKING_TOKEN", "hush")
    .flags(Flags {
        models: vec!["credit-score/3".to_owned(), "third@champion".to_owned()],
        admin_listen: Some("127.0.0.1:9".to_owned()),
        ..Flags::default()
    })
}

/// The effective configuration of the test below.
const EFFECTIVE: &str = r#"
data_dir = "state" # gate.toml:1
onnxruntime = "lib/libonnxruntime.so" # gate.toml:2

[server]
listen = "[::1]:8080" # MODELGATE__SERVER__LISTEN
admin_listen = "127.0.0.1:9" # --admin-listen
error_style = "problem" # default
max_body = "4MiB" # gate.toml:5
deadline = "1m 30s" # gate.toml:6
max_rows = 7 # MODELGATE__SERVER__MAX_ROWS
max_depth = 32 # default
max_header_bytes = "16KiB" # default
max_headers = 64 # default
header_timeout = "10s" # default
body_timeout = "30s" # default
idle_timeout = "60s" # default
max_connections = 4096 # default
max_connections_per_address = 256 # default
max_streams = 100 # default
max_in_flight = 256 # default
drain_delay = "2s" # default
grace = "20s" # default

[engine]
slots = 4 # default
max_held = 4 # default

[admission]
probe = true # default
max_load_memory = "1GiB" # default
max_load_cpu = "30s" # default
max_load_wall = "60s" # default
replay_rows = 256 # default
max_disagreement = 0.5 # default
max_latency_ratio = 3.0 # default
max_shift = 0.5 # default
signature_change = "refuse" # default

[registry]
uri = "https://***@dagshub.com/u/r.mlflow" # gate.toml:8
poll_interval = "30s" # default
timeout = "30s" # default
max_bytes = "512MiB" # default
token = "***" # MLFLOW_TRACKING_TOKEN
write_back = false # default

[[model]]
name = "credit-score" # gate.toml:10
select = "version:3" # --model
labels = { 0 = "Poor", 1 = "Good" } # gate.toml:12
threshold = 0.25 # gate.toml:13

[model.features]
coerce = false # gate.toml:19
rename = { idade = "Age" } # gate.toml:15
default = { Age = 40, Employed = true, Income = 1.5, Occupation = "none" } # gate.toml:16
one_hot = ["Occupation"] # gate.toml:17
unseen = "refuse" # gate.toml:18

[model.rollout]
strategy = "immediate" # default
steps = [{ share = 0.05, time = "10m" }, { share = 0.25, time = "10m" }, { share = 0.5, time = "10m" }] # default
watch = "5m" # default
dwell = "30s" # default
min_requests = 100 # default
max_error_rate = 0.01 # default
max_not_finite_rate = 0.01 # default
max_latency_ratio = 2.0 # default
max_disagreement = 0.05 # default
tolerance = 0.05 # default

[[model]]
name = "churn" # gate.toml:21
registered_model = "Churn, all countries" # gate.toml:22
select = "alias:champion" # default
bands = [["Low", 0.35], ["Medium", 0.7], ["High"]] # gate.toml:23

[model.features]
coerce = true # default
unseen = "count" # default

[model.capture]
rate = 0.25 # gate.toml:24

[model.rollout]
strategy = "immediate" # default
steps = [{ share = 0.05, time = "10m" }, { share = 0.25, time = "10m" }, { share = 0.5, time = "10m" }] # default
watch = "5m" # default
dwell = "30s" # default
min_requests = 100 # default
max_error_rate = 0.01 # default
max_not_finite_rate = 0.01 # default
max_latency_ratio = 2.0 # default
max_disagreement = 0.05 # default
tolerance = 0.05 # default

[[model]]
name = "third" # --model
select = "alias:champion" # --model

[model.features]
coerce = true # default
unseen = "count" # default

[model.rollout]
strategy = "immediate" # default
steps = [{ share = 0.05, time = "10m" }, { share = 0.25, time = "10m" }, { share = 0.5, time = "10m" }] # default
watch = "5m" # default
dwell = "30s" # default
min_requests = 100 # default
max_error_rate = 0.01 # default
max_not_finite_rate = 0.01 # default
max_latency_ratio = 2.0 # default
max_disagreement = 0.05 # default
tolerance = 0.05 # default

[plans.basic]
rate = 2.5 # gate.toml:26
quota = 10000 # gate.toml:27
period = "month" # gate.toml:28
unit = "rows" # default
enforce = true # default
models = ["credit-score"] # gate.toml:29

[plans.free]
period = "day" # default
unit = "requests" # gate.toml:31
enforce = true # default

[quota]
store = "embedded" # default
namespace = "modelgate" # default
on_store_down = "lease" # default

[keys]
shared = false # default

[metrics]
max_series = 2000 # default
max_categories = 50 # default

[metrics.cloudwatch]
namespace = "ModelGate" # default
interval = "60s" # default
mode = "full" # default

[drift]
window = "1h" # default
threshold = 0.1 # default
min_rows = 200 # default
baseline_rows = 1000 # default
by_key = false # default

[capture]
sink = "s3://samples/a/b/" # gate.toml:34
format = "jsonl" # gate.toml:36
rate = 1.0 # default
failed = false # default
redact = ["SSN"] # MODELGATE__CAPTURE__REDACT
hash = ["Customer"] # gate.toml:37
bucket = { Age = 2.5, Income = 1000 } # gate.toml:38
spool_max = "2GiB" # default

[capture.flush]
rows = 10000 # default
age = "5m" # gate.toml:35

[telemetry]
log_format = "text" # default
log_filter = "debug" # RUST_LOG
# traces to http://***@localhost:4318/v1/traces # OTEL_EXPORTER_OTLP_ENDPOINT
"#;

#[test]
fn the_effective_configuration_shows_every_value_and_its_origin_and_no_secret() {
    assert_eq!(everything().effective().trim(), EFFECTIVE.trim());
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let shown = everything().effective();
    let again = Setup::new(&shown).effective();
    // Only the origins differ, and the traces, which no key has.
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" # ").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(values(&again), values(&shown));
}

#[test]
fn every_value_arrives_as_what_it_is() {
    let config = everything().load().config;
    assert_eq!(config.data_dir, Path::new("state"));
    assert_eq!(config.onnxruntime.as_deref(), Some(Path::new("lib/libonnxruntime.so")));
    assert_eq!(config.server.listen, "[::1]:8080".parse().unwrap());
    assert_eq!((config.server.max_body, config.server.max_rows), (4 << 20, 7));
    assert_eq!(config.server.deadline, Duration::from_secs(90));
    assert_eq!((config.manager.poll_interval, config.manager.slots), (Duration::from_secs(30), 4));
    assert_eq!(config.auth.store, Path::new("state/modelgate.db"));
    assert!(matches!(config.quota.store, Location::File(file) if file == config.auth.store));
    assert_eq!(config.metrics.max_series.get(), 2000);
    assert_eq!(config.sinks.cloudwatch.unwrap().namespace, "ModelGate");
    let otlp = config.telemetry.otlp.unwrap();
    assert_eq!((&*otlp.endpoint, &*otlp.service_name), ("http://me:hush@localhost:4318/v1/traces", "gate"));
    let capture = config.capture.unwrap();
    assert_eq!(capture.sink, capture::sink::Config::S3 { bucket: "samples".to_owned(), prefix: "a/b".to_owned() });
    assert_eq!((capture.flush_rows.get(), capture.flush_age), (10_000, Duration::from_mins(5)));
    assert_eq!((capture.rate, capture.format), (capture::SamplingRate::ALL, capture::Format::Jsonl));
    assert_eq!((capture.protect.redact, capture.protect.hash), (vec!["SSN".to_owned()], vec!["Customer".to_owned()]));
    assert_eq!(capture.protect.bucket, [("Age".to_owned(), 2.5), ("Income".to_owned(), 1000.0)].into());
    assert_eq!(capture.secret, Path::new("state/capture-secret"));
    let quarter = capture::SamplingRate::new(0.25).unwrap();
    assert_eq!(capture.rates, [("churn".parse().unwrap(), quarter)].into());
}

#[test]
fn models_arrive_with_their_settings() {
    let [credit, churn, third] = &everything().load().config.manager.models[..] else { panic!("three models") };
    assert_eq!((credit.name.as_str(), &*credit.registered_model), ("credit-score", "credit-score"));
    assert_eq!(credit.select, Select::Version(Version(3)));
    assert_eq!((credit.decision.labels["1"].as_str(), &credit.decision.rule), ("Good", &Rule::Threshold(0.25)));
    assert_eq!((&*credit.features.rename["idade"], credit.features.coerce), ("Age", false));
    let default = &credit.features.default;
    assert_eq!((&default["Age"], &default["Income"]), (&DefaultValue::Integer(40), &DefaultValue::Float(1.5)));
    assert_eq!(churn.registered_model, "Churn, all countries");
    let below = vec![("Low".into(), 0.35), ("Medium".into(), 0.70)];
    assert_eq!(churn.decision.rule, Rule::Bands { below, top: "High".into() });
    assert_eq!((third.name.as_str(), &third.select), ("third", &Select::Alias("champion".to_owned())));
}

#[test]
fn plans_arrive_with_their_limits() {
    let config = everything().load().config;
    let (basic, free) = (&config.quota.plans["basic"], &config.quota.plans["free"]);
    assert_eq!(basic.throttle, Some(Throttle { rate: 2.5, burst: 3 }));
    assert_eq!(basic.quota, Some(Limit { amount: 10_000.try_into().unwrap(), period: Period::Month }));
    assert_eq!((basic.unit, free.unit, free.throttle, free.quota), (Unit::Rows, Unit::Requests, None, None));
    assert_eq!(config.auth.plans["basic"], Access::Only(["credit-score".to_owned()].into()));
    assert_eq!(config.auth.plans["free"], Access::All);
}

#[test]
fn where_no_plan_is_written_there_is_one_without_limits() {
    let config = Setup::new(MODEL).load().config;
    let plan = &config.quota.plans["default"];
    assert_eq!((plan.throttle, plan.quota), (None, None));
    assert_eq!(config.auth.plans["default"], Access::All);
}

/// What `server.listen` is when it is written in these places.
fn listen(file: &str, variable: Option<&str>, flag: Option<&str>) -> u16 {
    let mut setup = Setup::new(&format!("{file}\n{MODEL}"));
    if let Some(variable) = variable {
        setup = setup.env("MODELGATE__SERVER__LISTEN", variable);
    }
    setup.sources.flags.listen = flag.map(str::to_owned);
    setup.load().config.server.listen.port()
}

#[test]
fn the_file_is_over_the_default_the_environment_over_it_and_flags_over_all() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"";
    assert_eq!(listen("", None, None), 8080);
    assert_eq!(listen(file, None, None), 1);
    assert_eq!(listen(file, Some("127.0.0.1:2"), None), 2);
    assert_eq!(listen(file, Some("127.0.0.1:2"), Some("127.0.0.1:3")), 3);
}

#[test]
fn a_gateway_needs_no_file() {
    let flags = Flags {
        registry: Some("file:registry".to_owned()),
        models: vec!["credit-score".to_owned()],
        data_dir: Some("elsewhere".to_owned()),
        ..Flags::default()
    };
    let mut setup = Setup::new("").flags(flags);
    setup.sources.file = None;
    let config = setup.load().config;
    assert!(matches!(config.registry, registry::Config::Directory(root) if root == Path::new("registry")));
    assert_eq!(config.manager.models[0].select, Select::Alias("champion".to_owned()));
    assert_eq!(config.data_dir, Path::new("elsewhere"));
}

#[test]
fn a_table_and_a_list_of_tables_fit_into_a_variable() {
    let models = Setup::new("").env("MODELGATE__MODEL", r#"[{ name = "a", features = { coerce = false } }]"#);
    let models = models.env("MODELGATE__CAPTURE", r#"{ sink = "file:samples" }"#).load().config;
    assert!(!models.manager.models[0].features.coerce);
    assert_eq!(models.capture.unwrap().sink, capture::sink::Config::Directory("samples".into()));
}

/// `user:password` or `token` that the registry is shown, and its address.
fn shown_to_registry(setup: &Setup) -> (String, String) {
    let registry::Config::Mlflow(mlflow) = setup.load().config.registry else { panic!("a server") };
    let credentials = match mlflow.credentials {
        Credentials::None => String::new(),
        Credentials::Basic { username, password } => format!("{username}:{}", password.expose_secret()),
        Credentials::Bearer(token) => token.expose_secret().to_owned(),
    };
    (credentials, mlflow.uri.to_string())
}

#[test]
fn mlflows_variables_are_honoured_and_a_name_with_a_password_wins() {
    let setup = Setup::new("[registry]\nuri = \"http://a\"\n[[model]]\nname = \"m\"")
        .env("MLFLOW_TRACKING_URI", "http://b/base")
        .env("MLFLOW_TRACKING_TOKEN", "token")
        .env("MLFLOW_TRACKING_USERNAME", "me");
    assert_eq!(shown_to_registry(&setup), ("token".to_owned(), "http://b/base".to_owned()));
    let setup = setup.env("MLFLOW_TRACKING_PASSWORD", "secret");
    assert_eq!(shown_to_registry(&setup).0, "me:secret");
    let setup = setup.env("MODELGATE__REGISTRY__URI", "http://c/").env("MODELGATE__REGISTRY__USERNAME", "you");
    assert_eq!(shown_to_registry(&setup), ("you:secret".to_owned(), "http://c/".to_owned()));
}

#[test]
fn the_library_is_where_the_environment_or_the_file_says() {
    let found = |setup: &Setup| setup.load().config.onnxruntime.map(|path| path.display().to_string());
    let setup = Setup::new(MODEL);
    assert_eq!(found(&setup), None);
    let setup = setup.env("ORT_DYLIB_PATH", "/env/libonnxruntime.so");
    assert_eq!(found(&setup), Some("/env/libonnxruntime.so".to_owned()));
    let file = Setup::new(&format!("onnxruntime = \"/file/libonnxruntime.so\"\n{MODEL}"));
    assert_eq!(found(&file), Some("/file/libonnxruntime.so".to_owned()));
}

#[test]
fn an_empty_standard_variable_is_not_set() {
    let setup =
        Setup::new(MODEL).env("MLFLOW_TRACKING_URI", "").env("MLFLOW_TRACKING_USERNAME", "").env("RUST_LOG", "");
    assert_eq!(shown_to_registry(&setup), (String::new(), "http://127.0.0.1:5000/".to_owned()));
}

#[test]
fn credentials_in_the_address_move_out_of_it() {
    let setup = Setup::new(&format!("[registry]\nuri = \"https://me:p%40ss@host/base\"\n{MODEL}"));
    assert_eq!(shown_to_registry(&setup), ("me:p@ss".to_owned(), "https://host/base".to_owned()));
}

#[test]
fn a_secret_may_be_in_a_file() {
    let mut setup = Setup::new(MODEL);
    let secret = setup.folder.path().join("token");
    fs::write(&secret, "hush\n").unwrap();
    setup = setup.env("MODELGATE__REGISTRY__TOKEN_FILE", secret.to_str().unwrap());
    assert_eq!(shown_to_registry(&setup).0, "hush");
    fs::write(&secret, "\n").unwrap();
    assert!(setup.mistakes().ends_with("it is empty"), "{}", setup.mistakes());
}

/// Runs the binary in an empty folder of its own with nothing in its environment.
fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    command.args(arguments).current_dir(folder).env_clear().output().unwrap()
}

/// Standard output of a run that must end well.
fn stdout(folder: &TempDir, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_binary_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bad.toml"), "[server]\nlisten = 1\nmax_rows = 0\n[[model]]\nname = \"m\"\n").unwrap();
    for command in
        [&["check-config", "--config", "bad.toml"][..], &["serve", "--config", "bad.toml"], &["--config", "bad.toml"]]
    {
        let output = run(&folder, command);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{command:?}: {told}");
        assert!(told.contains("bad.toml:2: server.listen") && told.contains("bad.toml:3: server.max_rows"), "{told}");
        assert!(told.ends_with("\nmodelgate: 2 mistakes in the configuration\n"), "{told}");
    }
    assert_eq!(run(&folder, &["--nonsense"]).status.code(), Some(2));
    assert_eq!(run(&folder, &["keys", "revoke", "0123456789"]).status.code(), Some(1));
    assert_eq!(stdout(&folder, &["--version"]), format!("modelgate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_config_prints_what_is_in_effect() {
    let folder = tempfile::tempdir().unwrap();
    let shown = stdout(&folder, &["check-config", "--model", "m@blue", "--listen", "127.0.0.1:1"]);
    assert!(shown.contains("listen = \"127.0.0.1:1\" # --listen\n"), "{shown}");
    assert!(shown.contains("select = \"alias:blue\" # --model\n"), "{shown}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "looking at a configuration writes nothing");
}

#[test]
fn a_key_is_made_listed_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let key = stdout(&folder, &["keys", "create", "--name", "shop", "--data-dir", "state", "--expires", "90d"]);
    let id = key.split('_').nth(2).expect("the key's id").to_owned();
    let listed = || stdout(&folder, &["keys", "list", "--data-dir", "state"]);
    let line = listed().lines().nth(1).unwrap().to_owned();
    assert!(line.starts_with(&id) && line.contains("  active  ") && line.ends_with("shop"), "{line}");
    let told = stdout(&folder, &["keys", "revoke", &id, "--data-dir", "state"]);
    assert!(told.starts_with(&format!("revoked key {id} (shop)")), "{told}");
    assert!(listed().lines().nth(1).unwrap().contains("revoked"), "{}", listed());
    assert!(!listed().contains(key.trim()), "the list holds the key itself");
}

#[test]
fn a_key_needs_a_plan_that_there_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("gate.toml"), "[plans.a]\n[plans.b]\n").unwrap();
    let told = |plan: &[&str]| {
        let output = run(&folder, &[&["keys", "create", "--config", "gate.toml", "--name", "shop"], plan].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(told(&[]), "modelgate: say which plan the key is on: --plan a, --plan b\n");
    assert_eq!(told(&["--plan", "c"]), "modelgate: there is no plan `c`; configured are: a, b\n");
}
