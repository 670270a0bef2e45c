//! whom a gateway calls. Its registry, at an address a registry can have; S3, by its own name; and nobody else,
//! whatever addresses the registry gives, wherever it redirects, and whatever its name resolves to later.
//!
//! The proof runs in a network namespace where every address leads to this machine and every packet is seen. Where no
//! namespaces are to be had, a proxy still sees each host that is called.
#![expect(clippy::print_stdout, reason = "what could not be run is said")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::Response;
use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::fixtures::sum_files;
use crate::support::hostile_registry::{Asked, Honest, Hostile, ok, version};
use crate::support::sink::{Names, RESOLV_CONF, ROUTES, Sink};
use crate::support::site::{Gate, Site, eventually};

const NAME: &str = "registry.test";

/// Where the registry is: on a private network, as most are.
const HOME: &str = "10.20.30.40:5000";

/// Addresses that a gateway has no business with.
const DENIED: [[u8; 4]; 7] = [
    [169, 254, 169, 254],
    [169, 254, 170, 2],
    [100, 100, 100, 200],
    [127, 0, 0, 1],
    [10, 0, 0, 1],
    [192, 168, 1, 1],
    [0, 0, 0, 0],
];

/// One address in every spelling that some parser takes for it.
fn spellings([a, b, c, d]: [u8; 4]) -> Vec<String> {
    let whole = u32::from_be_bytes([a, b, c, d]);
    let low = u16::from_be_bytes([c, d]);
    let plain = format!("{a}.{b}.{c}.{d}");
    let wide: String = plain.chars().map(|c| if c == '.' { '。' } else { wide_digit(c) }).collect();
    vec![
        whole.to_string(),
        format!("{whole:#x}"),
        format!("{whole:#o}").replace("0o", "0"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0000{a:o}.0000{b:o}.0000{c:o}.0000{d:o}"),
        format!("{a}.{b}.{low}"),
        format!("{a}.{}", whole & 0x00ff_ffff),
        format!("{}", u64::from(whole) + (1 << 32)),
        format!("[::ffff:{plain}]"),
        format!("[::{plain}]"),
        format!("[0:0:0:0:0:ffff:{:x}:{:x}]", u16::from_be_bytes([a, b]), low),
        format!("[64:ff9b::{plain}]"),
        format!("[2002:{:x}:{:x}::]", u16::from_be_bytes([a, b]), low),
        format!("{plain}."),
        format!("{plain}:80"),
        format!("{plain}:443"),
        format!("user:password@{plain}"),
        format!("{NAME}@{plain}"),
        format!("{NAME}:5000@{plain}"),
        format!("{plain}#@{NAME}:5000"),
        format!("{plain}\\@{NAME}:5000"),
        format!("{NAME}:5000\\@{plain}"),
        format!("{plain}%23@{NAME}"),
        format!("{plain}?{NAME}"),
        format!("{plain}%2f.{NAME}"),
        format!("{plain}.nip.io"),
        plain.replace('.', "%2e"),
        wide,
        plain,
    ]
}

fn wide_digit(digit: char) -> char {
    char::from_u32(0xff10 + u32::from(digit) - u32::from('0')).unwrap()
}

/// Hosts that a registry may name to lead a gateway astray.
fn hosts() -> Vec<String> {
    let names = [
        "metadata.google.internal",
        "metadata",
        "instance-data",
        "instance-data.ec2.internal",
        "localhost",
        "localhost.localdomain",
        "localtest.me",
        "[::1]",
        "[::]",
        "[fd00:ec2::254]",
        "[fe80::1%25lo]",
        "[fe80::a9fe:a9fe]",
        "evil.example",
        "\u{2460}\u{2465}\u{2468}.254.169.254",
        "kubernetes.default.svc",
        "consul.service.consul:8500",
    ];
    names.map(str::to_owned).into_iter().chain(DENIED.into_iter().flat_map(spellings)).collect()
}

/// Addresses of files on `host`, by every way of writing one.
fn locations(host: &str) -> Vec<String> {
    let schemes =
        ["http", "https", "HTTP", "mlflow-artifacts", "s3", "ftp", "sftp", "gopher", "dict", "ldap", "file", "hdfs"];
    let more = ["gs", "dbfs", "abfss", "models", "runs", "jar:http", "mlflow-artifacts:http", "uc-volumes"];
    let with_scheme = schemes.into_iter().chain(more).map(|scheme| format!("{scheme}://{host}/latest/meta-data/iam"));
    let short = [
        format!("//{host}/latest"),
        format!("http:{host}/latest"),
        format!("http:/{host}/latest"),
        format!("mlflow-artifacts:/{host}"),
        format!("models:/m-1@{host}"),
        format!("models:/{host}/1"),
        format!("runs:/{host}/1"),
        format!("wasbs://container@{host}/x"),
    ];
    with_scheme.chain(short).collect()
}

/// How a registry leads astray.
#[derive(Clone, Debug)]
enum Lure {
    /// What the version says of its source.
    Source(String),
    /// Where it says the files are.
    Files(String),
    /// Where it says the run of the files is.
    Run(String),
    /// Where it says the logged model of the files is.
    LoggedModel(String),
    /// The answer to questions that contain this: a redirect.
    Redirect(&'static str, u16, String),
    /// The files are in this bucket, and so is all that the registry has.
    Bucket(String),
}

/// Version `number` as a registry tells of it that lures. All it really has is there, too.
fn luring(honest: &Honest, lure: &Lure, number: u64, asked: &Asked) -> Response {
    let path = asked.path.as_str();
    match lure {
        Lure::Redirect(question, status, to) if path.contains(question) => {
            let redirect = Response::builder().status(*status).header("refresh", format!("0; url={to}"));
            // What cannot be in a header cannot be sent.
            let to = to.bytes().filter(|byte| (0x20..0x7f).contains(byte)).collect::<Vec<_>>();
            return redirect
                .header("location", to)
                .header("alt-svc", "h2=\"169.254.169.254:443\"")
                .body(Body::empty())
                .unwrap();
        }
        Lure::Files(uri) if path.ends_with("get-download-uri") => return ok(&json!({ "artifact_uri": uri })),
        Lure::Run(_) if path.ends_with("get-download-uri") => return ok(&json!({ "artifact_uri": "runs:/run/model" })),
        Lure::Run(uri) if path.ends_with("runs/get") => {
            return ok(&json!({ "run": { "info": { "artifact_uri": uri } } }));
        }
        Lure::LoggedModel(_) if path.ends_with("get-download-uri") => {
            return ok(&json!({ "artifact_uri": "models:/m-1" }));
        }
        Lure::LoggedModel(uri) if path.ends_with("logged-models/m-1") => {
            let info = json!({ "artifact_uri": uri, "status": "LOGGED_MODEL_READY" });
            return ok(&json!({ "model": { "info": info } }));
        }
        Lure::Bucket(bucket) if path.ends_with("get-download-uri") => {
            return ok(&json!({ "artifact_uri": format!("s3://{bucket}/model") }));
        }
        Lure::Bucket(bucket) if path.ends_with("experiments/get") => {
            return ok(&json!({ "experiment": { "artifact_location": format!("s3://{bucket}/0") } }));
        }
        _ => {}
    }
    if path.ends_with("registered-models/alias") {
        let mut version = version();
        version["version"] = json!(number.to_string());
        if let Lure::Source(uri) = lure {
            version["source"] = json!(uri);
        }
        return ok(&json!({ "model_version": version }));
    }
    honest.answer(asked)
}

/// A registry that does as it is told, and what it was told.
struct Lurer {
    registry: Hostile,
    now: Arc<Mutex<Option<Lure>>>,
    number: Arc<AtomicU64>,
}

impl Lurer {
    async fn start(address: &str) -> Self {
        let (now, number) = (Arc::<Mutex<Option<Lure>>>::default(), Arc::new(AtomicU64::new(1)));
        let (told, at, honest) = (Arc::clone(&now), Arc::clone(&number), Honest::with(&sum_files(1000.0)));
        let registry = Hostile::start_at(address, move |asked| {
            let lure = told.lock().unwrap().clone();
            let mut answer = match lure {
                Some(lure) => luring(&honest, &lure, at.load(Ordering::SeqCst), &asked),
                None => honest.answer(&asked),
            };
            // The next question asks for the name again.
            answer.headers_mut().insert("connection", "close".parse().unwrap());
            std::future::ready(answer)
        })
        .await;
        Self { registry, now, number }
    }

    fn polls(&self) -> usize {
        self.registry.asked().iter().filter(|asked| asked.path.ends_with("registered-models/alias")).count()
    }

    fn set(&self, lure: Option<Lure>) {
        *self.now.lock().unwrap() = lure;
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    /// Lures the gateway until it has looked at a version made for that, and has asked twice more.
    async fn lure(&self, lure: Lure) {
        self.set(Some(lure.clone()));
        let (before, question) = (self.registry.asked().len(), lure.question());
        eventually(&format!("a look at {lure:?}"), async || {
            self.registry.asked()[before..].iter().any(|asked| asked.path.contains(question))
        })
        .await;
        // A silent registry is asked less and less often.
        self.set(None);
        let polls = self.polls();
        eventually("another question", async || self.polls() > polls + 1).await;
    }
}

impl Lure {
    /// What must be asked for the lure to work.
    fn question(&self) -> &'static str {
        match self {
            Self::Source(_) => "registered-models/alias",
            Self::Files(_) => "get-download-uri",
            Self::Run(_) => "runs/get",
            Self::LoggedModel(_) => "logged-models/m-1",
            Self::Redirect(question, ..) => question,
            Self::Bucket(_) => "experiments/get",
        }
    }
}

fn site(uri: &str) -> Site {
    Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"m\"\nselect = \"alias:champion\"\n\
         [registry]\nuri = \"{uri}\"\ntoken = \"secret\"\n"
    ))
}

/// Runs a test of this program in a network where [`Sink`] sees everything; `None` where that is not allowed.
fn in_a_network_of_its_own(test: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let names = folder.path().join("resolv.conf");
    std::fs::write(&names, RESOLV_CONF).unwrap();
    let apart = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--map-root-user", "sh", "-c", script, "sh"]);
        command
    };
    let prepare = format!("{ROUTES} && mount --bind \"$1\" /etc/resolv.conf");
    if !apart(&prepare).arg(&names).output().is_ok_and(|output| output.status.success()) {
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = apart(&format!("{prepare} && exec \"$2\" --ignored --exact \"$3\" --nocapture"));
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    let output = command
        .args([&names, &program])
        .arg(test)
        .envs([
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_MAX_ATTEMPTS", "1"),
        ])
        .output()
        .unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    Some(said)
}

fn check_apart(test: &str) {
    match in_a_network_of_its_own(test) {
        Some(said) => assert!(said.contains("\nnobody else was called: "), "{said}"),
        None => println!(
            "NOT RUN: {test} needs network and mount namespaces, which this user may not have (on Ubuntu: \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0). What a proxy sees was tested."
        ),
    }
}

/// Nobody was called but the registry, the name server, and the gateway at its own addresses by this test.
async fn check_sink(sink: &Sink, own: [SocketAddr; 2]) {
    let needed = BTreeSet::from([HOME, "127.0.0.1:53"].map(|address| address.parse().unwrap()));
    let seen = sink.seen().await;
    assert!(seen.is_superset(&needed), "the sink does not see all: {seen:?}");
    let others: Vec<_> = seen.difference(&needed).filter(|address| !own.contains(address)).collect();
    assert!(others.is_empty(), "somebody else was called: {others:?}");
}

async fn serves(gate: &Gate) {
    let answer = gate.predict("sum", &json!({ "a": 1, "b": 2, "c": 3 })).await;
    assert_eq!(answer.body["prediction"], 1006.0, "{}", answer.body);
}

#[test]
fn whatever_the_registry_names_only_the_registry_is_called() {
    check_apart("registry_reach::calls_only_its_registry");
}

#[test]
#[ignore = "nightly: every lure with every host, two minutes"]
fn whatever_the_registry_names_in_whichever_way_only_the_registry_is_called() {
    check_apart("registry_reach::calls_only_its_registry_however_it_is_lured");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "child: of whatever_the_registry_names_only_the_registry_is_called"]
async fn calls_only_its_registry() {
    check_lures(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "child: of whatever_the_registry_names_in_whichever_way_only_the_registry_is_called"]
async fn calls_only_its_registry_however_it_is_lured() {
    check_lures(usize::MAX).await;
}

/// A gateway whose registry has a name, and all that can be seen of it and done to it.
struct Lured {
    sink: Sink,
    names: Names,
    lurer: Lurer,
    gate: Gate,
    _site: Site,
}

impl Lured {
    async fn start() -> Self {
        let sink = Sink::open();
        let names = Names::serve(NAME);
        names.resolve_to(&["10.20.30.40"]);
        let lurer = Lurer::start(HOME).await;
        let mut site = site(&format!("http://{NAME}:5000"));
        let gate = site.start("open").await;
        gate.serves("sum", 1).await;
        Self { sink, names, lurer, gate, _site: site }
    }
}

/// Lures a gateway with every host, in at most `ways` ways each.
async fn check_lures(ways: usize) {
    let Lured { sink, names, lurer, gate, _site } = Lured::start().await;
    let mut count = 0;
    for (number, host) in hosts().into_iter().enumerate() {
        let locations = locations(&host);
        let one = |offset: usize| locations[(number + offset) % locations.len()].clone();
        let question = QUESTIONS[number % QUESTIONS.len()];
        let status = [301, 302, 303, 307, 308][number % 5];
        let page = || format!("http://{host}/latest/meta-data");
        let mut ways_in = [
            Lure::Redirect(question, status, page()),
            Lure::Files(page()),
            Lure::Source(page()),
            Lure::Files(one(0)),
            Lure::Run(one(1)),
            Lure::LoggedModel(one(2)),
            Lure::Source(one(3)),
        ];
        let kinds = ways_in.len();
        ways_in.rotate_left(number % kinds);
        for lure in ways_in.into_iter().take(ways) {
            lurer.lure(lure).await;
            count += 1;
        }
    }
    serves(&gate).await;
    assert_eq!(names.asked(), BTreeSet::from([NAME.to_owned()]), "no other name is asked for");
    for bucket in ["169.254.169.254", "2852039166", "metadata.google.internal", "evil--use1-az4--x-s3", "localhost"] {
        lurer.lure(Lure::Bucket(bucket.to_owned())).await;
    }
    serves(&gate).await;
    let own = [gate.data, gate.admin];
    gate.stop().await;
    check_sink(&sink, own).await;
    let mut others = names.asked();
    assert!(others.remove(NAME));
    assert!(!others.is_empty() && others.iter().all(|name| name.ends_with(".us-east-1.amazonaws.com")), "{others:?}");
    println!("\nnobody else was called: {count} lures, and S3 by {others:?}");
}

/// Questions that every version brings about.
const QUESTIONS: [&str; 4] = ["registered-models/alias", "get-download-uri", "mlflow-artifacts/artifacts", "/MLmodel"];

#[test]
fn a_name_that_moves_to_where_no_registry_is_is_not_followed() {
    check_apart("registry_reach::follows_its_name_only_to_registries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "child: of a_name_that_moves_to_where_no_registry_is_is_not_followed"]
async fn follows_its_name_only_to_registries() {
    let Lured { sink, names, lurer, gate, _site } = Lured::start().await;
    let elsewhere = [
        "127.0.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "::1",
        "fd00:ec2::254",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
    ];
    for address in elsewhere {
        names.resolve_to(&[address]);
        let is_said = |status: &Value| status["trouble"].as_str().is_some_and(|why| why.contains("resolves to ["));
        gate.says("sum", "where the name leads", is_said).await;
        serves(&gate).await;
        names.resolve_to(&["10.20.30.40"]);
        gate.says("sum", "the registry again", |status| status["trouble"].is_null()).await;
        // Both at once: the one that a registry can have is called.
        names.resolve_to(&[address, "10.20.30.40"]);
        let polls = lurer.polls();
        eventually("three questions", async || lurer.polls() > polls + 2).await;
        names.resolve_to(&["10.20.30.40"]);
    }
    serves(&gate).await;
    let own = [gate.data, gate.admin];
    gate.stop().await;
    check_sink(&sink, own).await;
    println!("\nnobody else was called: the name led elsewhere {} times", elsewhere.len());
}

/// The same on the surface, without namespaces: a proxy is asked for the registry only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_for_the_registry_and_for_nobody_it_names() {
    let astray = || "http://169.254.169.254/latest/meta-data".to_owned();
    let lurer = Lurer::start("127.0.0.1:0").await;
    let site = site(&format!("http://{NAME}:5000"));
    site.config();
    let proxy = lurer.registry.uri.as_str();
    lurer.set(Some(Lure::Redirect("registered-models/alias", 302, astray())));
    let environment =
        [("http_proxy", proxy), ("https_proxy", proxy), ("no_proxy", ""), ("AWS_EC2_METADATA_DISABLED", "true")];
    let binary = Binary::serve_with(&site.folder().join("modelgate.toml"), &environment);
    for lure in [Some(Lure::Files(astray())), None] {
        let before = lurer.registry.asked().len();
        eventually("a question", async || lurer.registry.asked().len() > before).await;
        lurer.set(lure);
    }
    binary.ready(&reqwest::Client::builder().no_proxy().build().unwrap()).await;
    let called: BTreeSet<_> = lurer.registry.asked().into_iter().map(|asked| asked.proxied_for).collect();
    assert_eq!(called, BTreeSet::from([Some(format!("{NAME}:5000"))]));
}
