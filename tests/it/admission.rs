//! Versions that must not serve: refused with the rule named, while the one before them answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use modelgate::manager::ModelConfig;
use modelgate::manager::admission::confine::confine;
use modelgate::manager::admission::{Admission, Candidate, Check, Config, Outcome, SignatureChange, Verdict};
use modelgate::model::runtime::Runtime;
use modelgate::model::{Digest, Model};
use modelgate::registry::cache::Cache;
use modelgate::registry::{Fetched, Registry};
use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::onnx::Weights;
use crate::support::site::{Gate, Site, eventually};
use crate::support::{fixtures, mlflow, onnx};

const MODEL: &str = "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n";

fn site(admission: &str) -> Site {
    let site = Site::new(&format!("{MODEL}[admission]\n{admission}"));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    site
}

/// Promotes `version` and waits for its verdict; the rung where it stopped, if it did.
async fn verdict_of(site: &Site, gate: &Gate, version: u64) -> Option<Value> {
    site.promote("sum", version);
    let judged = |status: &Value| status["verdict"]["version"] == json!(version.to_string());
    let status = gate.says("sum", &format!("a verdict on version {version}"), judged).await;
    let last = status["verdict"]["rungs"].as_array().unwrap().last().unwrap().clone();
    (last["outcome"] != "passed" && last["outcome"] != "skipped").then_some(last)
}

async fn assert_answers_as(gate: &Gate, version: u64) {
    let answer = gate.predict("sum", &json!({ "a": 1, "b": 2, "c": 3 })).await;
    assert_eq!((answer.status, &answer.body["version"]), (200, &json!(version.to_string())), "{}", answer.body);
}

#[test]
fn every_limit_that_is_written_is_the_one_that_holds() {
    let site = site(
        "probe = false\nmax_load_memory = \"777MiB\"\nmax_load_cpu = \"7s\"\nmax_load_wall = \"8s\"\nreplay_rows = 70\n\
         max_disagreement = 0.71\nmax_latency_ratio = 7.2\nmax_shift = 0.73\nsignature_change = \"allow\"\n",
    );
    let config = site.config().manager.admission;
    assert!(!config.probe);
    assert_eq!((config.max_load_memory, config.replay_rows), (777 << 20, 70));
    assert_eq!((config.max_load_cpu, config.max_load_wall), (Duration::from_secs(7), Duration::from_secs(8)));
    let limits = [config.max_disagreement, config.max_latency_ratio, config.max_shift].map(|limit| limit.to_string());
    assert_eq!(limits, ["0.71", "7.2", "0.73"]);
    assert_eq!(config.signature_change, SignatureChange::Allow);
}

fn script(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("program");
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_would_hurt_are_refused_by_rule_while_the_one_before_them_answers() {
    let mut site = site("replay_rows = 0\nmax_load_cpu = \"1s\"\n");
    let tries = site.folder().join("tries");
    site.count_tries(&tries);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let secret = site.folder().join("secret");
    fs::write(&secret, [0; 4]).unwrap();

    let bomb = onnx::model(&[onnx::node("", "ConstantOfShape", &["n"])], &[onnx::integer("n", 1 << 32)], &[]);
    let call = |name: &str| [onnx::node("own", name, &["in"])];
    let circle = [onnx::function("f", &call("g")), onnx::function("g", &call("f"))];
    let whole = fixtures::sum_model(7.0);
    let statically = [
        (onnx::chain(700), "functions call at most 32 deep"),
        (onnx::model(&call("f"), &[], &circle), "no function calls itself"),
        (bomb, "node `culprit` (ConstantOfShape) breaks the rule `constants make at most 256 MiB`"),
        (onnx::model(&[onnx::node("com.evil", "Run", &[])], &[], &[]), "ai.onnx.ml only"),
        (onnx::model(&[], &[onnx::elsewhere("../../secret")], &[]), "all weights are in the model file"),
        (onnx::model(&[], &[onnx::elsewhere("weights.bin")], &[]), "all weights are in the model file"),
        (onnx::model(&[], &[onnx::elsewhere("/etc/hostname")], &[]), "all weights are in the model file"),
        (whole[..whole.len() / 2].to_vec(), "not an ONNX file"),
    ];
    let mut version = 1;
    for (bytes, rule) in statically {
        version += 1;
        site.register_changed("sum", version, "sum", |folder| {
            fs::write(folder.join("model.onnx"), bytes).unwrap();
            fs::hard_link(&secret, folder.join("weights.bin")).unwrap();
        });
        let stopped = verdict_of(&site, &gate, version).await.unwrap();
        assert_eq!((&stopped["name"], &stopped["outcome"]), (&json!("scan"), &json!("refused")), "{stopped}");
        assert!(stopped["detail"].as_str().unwrap().contains(rule), "{stopped} for {rule}");
        assert_answers_as(&gate, 1).await;
    }
    // The scan does not know what comes of a multiplication: two gigabytes.
    version += 1;
    site.register_changed("sum", version, "sum", |folder| {
        let bomb = onnx::sum_with(1000.0, &Weights::Computed { floats: 1 << 29 });
        fs::write(folder.join("model.onnx"), bomb).unwrap();
    });
    let stopped = verdict_of(&site, &gate, version).await.unwrap();
    assert_eq!((&stopped["name"], &stopped["outcome"]), (&json!("probe"), &json!("refused")), "{stopped}");
    assert_answers_as(&gate, 1).await;
    let by_running = [("endless", "max_load_cpu"), ("not-finite", "not finite"), ("wrong-rows", "the model")];
    for (fixture, reason) in by_running {
        version += 1;
        site.register_changed("sum", version, fixture, |folder| {
            // `endless` counts to the largest `x`.
            let example = json!({ "dataframe_split": { "columns": ["x"], "data": [[1e17], [2.0]] } });
            fs::write(folder.join("serving_input_example.json"), example.to_string()).unwrap();
        });
        let stopped = verdict_of(&site, &gate, version).await.unwrap();
        assert_eq!((&stopped["name"], &stopped["outcome"]), (&json!("probe"), &json!("refused")), "{stopped}");
        assert!(stopped["detail"].as_str().unwrap().contains(reason), "{stopped} for {reason}");
        assert_answers_as(&gate, 1).await;
    }
    // The same graph with fewer zeros is no bomb.
    site.register_changed("sum", version + 1, "sum", |folder| {
        let harmless = onnx::sum_with(2000.0, &Weights::Computed { floats: 1 << 10 });
        fs::write(folder.join("model.onnx"), harmless).unwrap();
    });
    assert_eq!(verdict_of(&site, &gate, version + 1).await, None);
    gate.serves("sum", version + 1).await;
    // The first, four that have to run to be found out, and the last: once each, at a poll every 10 ms.
    assert_eq!(fs::read_to_string(&tries).unwrap().lines().count(), 6);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_answers_the_rows_of_late_too_differently_is_refused() {
    let mut site = site("");
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let rows: Vec<Value> = (0..64).map(|row| json!({ "a": row, "b": 0, "c": 0 })).collect();
    assert_eq!(gate.predict("sum", &json!(rows)).await.status, 200);

    site.register_sum("sum", 2, 5000.0);
    let stopped = verdict_of(&site, &gate, 2).await.unwrap();
    assert_eq!(stopped["name"], "replay", "{stopped}");
    assert!(stopped["detail"].as_str().unwrap().contains("max_disagreement"), "{stopped}");
    site.register_sum("sum", 3, 1005.0);
    assert_eq!(verdict_of(&site, &gate, 3).await, None);
    gate.serves("sum", 3).await;
    // Nobody asked version 3 anything: it has the rows its predecessor answered.
    site.register_sum("sum", 4, 5000.0);
    assert_eq!(verdict_of(&site, &gate, 4).await.unwrap()["name"], "replay");
    site.register("sum", 5, "regression");
    let stopped = verdict_of(&site, &gate, 5).await.unwrap();
    assert_eq!(stopped["name"], "signature", "{stopped}");
    assert!(stopped["detail"].as_str().unwrap().contains("`a` is gone"), "{stopped}");
    assert_answers_as(&gate, 3).await;
    gate.stop().await;
}

/// Admits a fixture without a gateway, with `program` in the place of the process that tries it.
async fn admit(fixture: &str, change: impl FnOnce(&mut Config)) -> (Verdict, Option<Model>) {
    let site = Site::new(MODEL);
    let manager = site.config().manager;
    let ModelConfig { select, .. } = &manager.models[0];
    site.register("sum", 1, fixture);
    site.promote("sum", 1);
    let registry = Registry::new(site.config().registry, reqwest::Client::builder().build().unwrap());
    let cache = Cache::open(site.folder().join("cache")).unwrap();
    let found = registry.resolve("sum", select).await.unwrap();
    let fetched = mlflow::fetch(&registry, &found, &cache).await.unwrap();
    let mut config = manager.admission.clone();
    change(&mut config);
    let admission = Admission::new(config, Runtime::load(None).unwrap(), Some(cache), 2);
    let candidate =
        |fetched| Candidate { config: &manager.models[0], found: &found, fetched, serving: None, has_served: false };
    let other = Fetched { digest: Digest([1; 32]), folder: fetched.folder.clone() };
    let admitted = admission.admit(candidate(&fetched)).await;
    let (rewritten, _) = admission.admit(candidate(&other)).await;
    assert_eq!(rewritten.stopped_at().unwrap().name, Check::Digest, "other bytes under the same name");
    admitted
}

#[tokio::test]
async fn a_good_version_climbs_to_the_top_without_a_gateway() {
    let (verdict, model) = admit("sum", |_| ()).await;
    assert!(verdict.is_admitted() && model.is_some(), "{verdict:#?}");
    let names: Vec<Check> = verdict.rungs.iter().map(|rung| rung.name).collect();
    let all =
        [Check::Digest, Check::Scan, Check::Probe, Check::Signature, Check::Example, Check::WarmUp, Check::Replay];
    assert_eq!(names, all);
    let text = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
}

/// How the rung ends when the process that tries the version does as `text` says.
async fn check_process(text: &str, outcome: Outcome, detail: &str) {
    check_process_within(Duration::from_secs(30), text, outcome, detail).await;
}

async fn check_process_within(wall: Duration, text: &str, outcome: Outcome, detail: &str) {
    let folder = tempfile::tempdir().unwrap();
    let program = script(folder.path(), text);
    let (verdict, model) = admit("sum", |config| {
        config.program = program;
        config.max_load_wall = wall;
    })
    .await;
    let stopped = verdict.stopped_at().unwrap();
    assert_eq!((stopped.name, stopped.outcome), (Check::Probe, outcome), "{text}: {stopped:?}");
    assert!(stopped.detail.contains(detail) && model.is_none(), "{text}: {stopped:?}");
}

#[tokio::test]
async fn whatever_the_process_does_the_gateway_says_how_it_ended() {
    check_process("kill -SEGV $$", Outcome::Refused, "crashed with SIGSEGV").await;
    check_process("kill -ABRT $$", Outcome::Refused, "SIGABRT").await;
    check_process_within(Duration::from_millis(500), "exec sleep 600", Outcome::Refused, "max_load_wall").await;
    // It talks without end, and is not listened to.
    check_process("exec yes", Outcome::Refused, "ended with").await;
    check_process("exit 3", Outcome::Refused, "no answer").await;
    check_process("echo '{\"answered\":'", Outcome::Refused, "no answer").await;
    check_process("kill -KILL $$", Outcome::Undecided, "killed from outside").await;
    let (verdict, _) = admit("sum", |config| config.program = "/nowhere/modelgate".into()).await;
    assert_eq!(verdict.stopped_at().unwrap().outcome, Outcome::Undecided, "{verdict:?}");
}

#[tokio::test]
async fn a_process_without_the_memory_for_a_version_does_not_take_ours() {
    let (verdict, model) = admit("pipeline", |config| config.max_load_memory = 64 << 20).await;
    assert!(!verdict.is_admitted() && model.is_none(), "{verdict:?}");
    assert_eq!(verdict.stopped_at().unwrap().name, Check::Probe);
}

/// The name of the test below, for the process that runs it alone.
const INSIDE: &str = "admission::inside_the_confinement";

/// Runs in a process of its own: what it tries there it can do nowhere else.
#[test]
#[ignore = "child: of the test below"]
#[expect(
    clippy::disallowed_methods,
    reason = "it is told what to try by the test below, and tries it in a thread, too"
)]
fn inside_the_confinement() {
    let folder = PathBuf::from(std::env::var_os(INSIDE).unwrap());
    let outside = folder.parent().unwrap().join("secret");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = std::sync::Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    fs::read(&outside).unwrap();
    let confinement = confine(&folder);
    let denied = |what: &str, error: std::io::Error| {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{what}: {error}");
    };
    let try_all = move || {
        if confinement.files.is_none() {
            for path in [outside.as_path(), &folder.join("../secret"), &folder.join("link"), Path::new("/etc/passwd")] {
                denied("open", fs::File::open(path).unwrap_err());
            }
            denied("write", fs::write(folder.join("new"), "").unwrap_err());
            denied("list", fs::read_dir(folder.parent().unwrap()).unwrap_err());
        }
        assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), b"a model", "its own files");
        assert_eq!(confinement.calls, None, "seccomp is older than every kernel we run on");
        denied("connect", std::net::TcpStream::connect(address).unwrap_err());
        denied("connect what is open", socket.connect(address).unwrap_err());
        denied("udp", std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err());
        denied("unix", std::os::unix::net::UnixStream::pair().unwrap_err());
        denied("exec", std::process::Command::new("/bin/true").status().unwrap_err());
    };
    try_all.clone()();
    // A thread that was started inside is no way out.
    std::thread::spawn(try_all).join().unwrap();
    println!("kept in");
}

#[test]
fn a_confined_process_reads_its_version_and_nothing_else() {
    let site = tempfile::tempdir().unwrap();
    let folder = site.path().join("version");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("model.onnx"), "a model").unwrap();
    fs::write(site.path().join("secret"), "a secret").unwrap();
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    let output = tests.args(["--exact", INSIDE, "--ignored", "--nocapture"]).env(INSIDE, &folder).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("kept in"), "{said}");
}

/// What the system says of a process under a name such as `Seccomp`.
fn said_of(process: &str, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_tried_in_confinement_and_the_verdict_says_so() {
    let mut site = site("replay_rows = 0\nmax_load_cpu = \"20s\"\n");
    let pid = site.folder().join("pid");
    let real = env!("CARGO_BIN_EXE_modelgate");
    site.set_probe_program(script(site.folder(), &format!("echo $$ > {}\nexec {real} probe", pid.display())));
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let status = gate.status("sum").await;
    let rungs = status["verdict"]["rungs"].as_array().unwrap();
    let detail = rungs.iter().find(|rung| rung["name"] == "probe").unwrap()["detail"].as_str().unwrap();
    assert!(detail.contains("kept from") && !detail.contains("not kept from sockets"), "{detail}");

    site.register_changed("sum", 2, "endless", |folder| {
        let example = json!({ "dataframe_split": { "columns": ["x"], "data": [[1e17], [2.0]] } });
        fs::write(folder.join("serving_input_example.json"), example.to_string()).unwrap();
    });
    fs::remove_file(&pid).unwrap();
    site.promote("sum", 2);
    // While it counts: a filter is in force (2), and no new rights can be had.
    eventually("a process in confinement", async || {
        let process = fs::read_to_string(&pid).unwrap_or_default();
        said_of(process.trim(), "Seccomp").as_deref() == Some("2")
            && said_of(process.trim(), "NoNewPrivs").as_deref() == Some("1")
    })
    .await;
    let process = fs::read_to_string(&pid).unwrap();
    let bytes = fs::metadata(fixtures::folder("endless").join("model.onnx")).unwrap().len();
    check_limits(process.trim(), 4 * bytes + (1 << 30));
    gate.stop().await;
}

/// What the system holds a process to that tries a version with 20 s of processor time.
#[track_caller]
fn check_limits(process: &str, address_space: u64) {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(|number| number.parse().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(limit("Max cpu time"), [20, 21]);
    assert_eq!(limit("Max address space"), [address_space; 2]);
    assert_eq!(limit("Max open files"), [64; 2]);
    assert_eq!(limit("Max file size"), [0; 2]);
    assert_eq!(limit("Max core file size"), [0; 2]);
    let niceness = |process: &str| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        after_name.split_whitespace().nth(16).unwrap().parse().unwrap()
    };
    assert_eq!(niceness(process), (niceness("self") + 5).min(19));
    let environment = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    let inherited = |variable: &&str| variable.starts_with("HOME=") || variable.starts_with("PATH=");
    assert_eq!(environment.split('\0').find(inherited), None);
}

/// The process that tries a version for the gateway `parent`, if there is one.
fn trying(parent: u32) -> Option<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_child = |process: &String| said_of(process, "PPid") == Some(parent.to_string());
    processes.filter(|name| name.parse::<u32>().is_ok()).find(is_child)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_tries_a_version_ends_with_the_gateway() {
    let site = site("max_load_cpu = \"1h\"\nmax_load_wall = \"1h\"\n");
    site.register_changed("sum", 2, "endless", |folder| {
        let example = json!({ "dataframe_split": { "columns": ["x"], "data": [[1e17], [2.0]] } });
        fs::write(folder.join("serving_input_example.json"), example.to_string()).unwrap();
    });
    site.promote("sum", 2);
    site.config();
    let binary = Binary::serve_with(&site.folder().join("modelgate.toml"), &[]);
    let mut child = None;
    eventually("a process that counts", async || {
        child = trying(binary.id());
        child.as_ref().is_some_and(|child| said_of(child, "Seccomp").as_deref() == Some("2"))
    })
    .await;
    let child = child.unwrap();
    binary.signal("KILL");
    // Where nobody collects orphans its number stays.
    eventually("its end", async || said_of(&child, "State").is_none_or(|state| state.starts_with(['Z', 'X']))).await;
    let (status, _) = binary.ended().await;
    assert!(!status.success());
}

/// How long admission of an ordinary model takes, and what it leaves in this process; prints both.
#[tokio::test]
#[ignore = "figure: admission, rung by rung"]
async fn admission_of_an_ordinary_model_takes() {
    for turn in 0..5 {
        let before = resident_kb();
        let (verdict, model) = admit("lightgbm", |_| ()).await;
        assert!(model.is_some(), "{verdict:?}");
        let times: Vec<_> = verdict.rungs.iter().map(|rung| (rung.name, rung.took_ms)).collect();
        println!("{turn}: {times:?}, resident {} KB more", resident_kb().saturating_sub(before));
    }
}

fn resident_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
