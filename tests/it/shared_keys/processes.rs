//! Gateways in processes of their own, with keys from the command line of another data directory.

#![expect(clippy::disallowed_methods, reason = "a caller in a test has no time-outs")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::redis::{Server, Tls};
use crate::support::site::{Site, eventually};

/// A site whose gateways share their keys, each in a data directory of its own.
struct Fleet {
    site: Site,
    http: reqwest::Client,
}

impl Fleet {
    fn new(url: &str) -> Self {
        let text = format!(
            "[plans.open]\n[[model]]\nname = \"sum\"\n[keys]\nshared = true\npepper_file = \"{{folder}}/pepper\"\n\
             [quota]\nstore = \"{url}\"\n"
        );
        let site = Site::new(&text);
        site.register_sum("sum", 1, 1000.0);
        site.promote("sum", 1);
        site.config();
        Self { site, http: reqwest::Client::new() }
    }

    fn file(&self) -> std::path::PathBuf {
        self.site.folder().join("modelgate.toml")
    }

    fn directory(&self, name: &str) -> String {
        self.site.folder().join(name).display().to_string()
    }

    /// `modelgate keys …` on a data directory.
    fn run(&self, directory: &str, words: &[&str]) -> Output {
        self.command(directory, words).output().unwrap()
    }

    fn doctor(&self, directory: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
        command.arg("doctor").arg("--config").arg(self.file()).args(["--data-dir", &self.directory(directory)]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn command(&self, directory: &str, words: &[&str]) -> Command {
        let folder = self.directory(directory);
        fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
        command.arg("keys").args(words).arg("--config").arg(self.file()).args(["--data-dir", &folder]);
        command
    }

    /// The same where it succeeds; what it printed.
    fn keys(&self, directory: &str, words: &[&str]) -> String {
        let output = self.run(directory, words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The same where it fails; what it said.
    fn refused(&self, directory: &str, words: &[&str]) -> String {
        let output = self.run(directory, words);
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    async fn start(&self, directory: &str) -> Binary {
        let gateway = Binary::serve_with(&self.file(), &[("MODELGATE__DATA_DIR", &self.directory(directory))]);
        gateway.ready(&self.http).await;
        gateway
    }

    async fn ask(&self, gateway: &Binary, key: &str) -> u16 {
        let request = self.http.post(format!("http://{}/predict", gateway.data)).header("x-api-key", key);
        let row = json!({ "data": { "a": 1, "b": 2, "c": 3 } });
        request.json(&row).send().await.unwrap().status().as_u16()
    }

    async fn answers(&self, gateway: &Binary, key: &str, status: u16) {
        eventually(&format!("{status}"), async || self.ask(gateway, key).await == status).await;
    }

    async fn copy(&self, gateway: &Binary) -> Value {
        let page = self.http.get(format!("http://{}/admin/keys", gateway.admin)).send().await.unwrap();
        let page: Value = serde_json::from_slice(&page.bytes().await.unwrap()).unwrap();
        page["shared"].clone()
    }

    async fn metrics(&self, gateway: &Binary) -> String {
        self.http.get(format!("http://{}/metrics", gateway.admin)).send().await.unwrap().text().await.unwrap()
    }
}

fn make_pepper(path: &Path) {
    let line = format!("umask 077; head -c 32 /dev/urandom > {}", path.display());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_one_command_line_work_in_every_gateway_with_and_without_the_store() {
    let mut server = Server::start();
    let fleet = Fleet::new(&server.url());
    let told = fleet.refused("desk", &["share"]);
    assert!(told.contains("there is no pepper") && told.contains("head -c 32"), "{told}");
    make_pepper(&fleet.site.folder().join("pepper"));
    let told = fleet.refused("desk", &["create", "--name", "shop"]);
    assert!(told.contains("run `modelgate keys share` once"), "{told}");
    assert_eq!(fleet.keys("desk", &["share"]), "keys shared: 0, in the store before: 0");

    let looked = fleet.doctor("one");
    assert!(looked.lines().any(|line| line.contains("shared keys") && line.ends_with("0 of them")), "{looked}");

    let (one, other) = (fleet.start("one").await, fleet.start("other").await);
    let key = fleet.keys("desk", &["create", "--name", "shop"]);
    let id = &key[8..18];
    for gateway in [&one, &other] {
        fleet.answers(gateway, &key, 200).await;
    }
    fleet.keys("other", &["disable", id]);
    fleet.answers(&one, &key, 403).await;
    fleet.keys("one", &["enable", id]);
    for gateway in [&one, &other] {
        fleet.answers(gateway, &key, 200).await;
        assert_eq!(fleet.copy(gateway).await["trouble"], Value::Null);
        assert!(fleet.metrics(gateway).await.contains("modelgate_keys_in_step{} 1.0"));
    }

    server.kill();
    eventually("the gateway to say that the store is gone", async || {
        fleet.copy(&one).await["trouble"].is_string()
            && fleet.metrics(&one).await.contains("modelgate_keys_in_step{} 0.0")
    })
    .await;
    assert_eq!(fleet.ask(&one, &key).await, 200, "no prediction fails of it");
    assert!(fleet.copy(&one).await["age_seconds"].is_u64());
    let told = fleet.refused("one", &["revoke", id]);
    assert!(told.contains("cannot be asked"), "{told}");
    let listed = fleet.run("one", &["list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(id) && listed.status.success());
    assert!(String::from_utf8_lossy(&listed.stderr).contains("the copy of the shared keys of"));
    drop(other);
    let other = fleet.start("other").await;
    assert_eq!(fleet.ask(&other, &key).await, 200, "it starts with its copy");

    server.restart();
    eventually("the gateway to say that the store is empty", async || {
        fleet.copy(&one).await["trouble"].as_str().is_some_and(|trouble| trouble.contains("no shared keys"))
    })
    .await;
    assert_eq!(fleet.ask(&one, &key).await, 200);
    assert_eq!(fleet.keys("one", &["share"]), "keys shared: 1, in the store before: 0");
    fleet.keys("desk", &["revoke", id]);
    for gateway in [&one, &other] {
        fleet.answers(gateway, &key, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_shared_over_tls_with_a_store_that_somebody_vouches_for() {
    let server = Server::start();
    let tls = Tls::before(&server).await;
    let fleet = Fleet::new(&format!("rediss://localhost:{}", tls.port));
    make_pepper(&fleet.site.folder().join("pepper"));
    let told = fleet.refused("desk", &["share"]);
    assert!(told.contains("cannot be asked"), "{told}");
    let authority = fleet.site.folder().join("authority.pem");
    fs::write(&authority, &tls.authority).unwrap();
    let output = fleet.command("desk", &["share"]).env("SSL_CERT_FILE", &authority).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
