//! Three gateways in processes of their own, asked over HTTP, with one Redis behind them.

#![expect(clippy::print_stdout, reason = "a nightly run says what it counted")]
#![expect(clippy::disallowed_methods, reason = "a caller in a test has no time-outs")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU64;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::process::Binary;
use crate::support::redis::{Server, Tls};
use crate::support::site::{Answer, Site, eventually};

/// A site that serves the model `sum`, with a quota in Redis.
fn site(plans: &str, quota: &str) -> Site {
    let site = Site::new(&format!("{plans}\n[[model]]\nname = \"sum\"\n[quota]\n{quota}\n"));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    site.config();
    site
}

/// Starts a gateway of the site in a folder of its own, with the keys that were made so far.
async fn start(site: &Site, number: usize, environment: &[(&str, &str)]) -> Binary {
    let folder = site.folder().join(format!("data-{number}"));
    fs::create_dir(&folder).unwrap();
    for name in ["modelgate.db", "pepper"] {
        fs::copy(site.folder().join("data").join(name), folder.join(name)).unwrap();
    }
    let folder = [("MODELGATE__DATA_DIR", folder.to_str().unwrap())];
    let environment = [environment, &folder].concat();
    let gateway = Binary::serve_with(&site.folder().join("modelgate.toml"), &environment);
    gateway.ready(&reqwest::Client::new()).await;
    gateway
}

async fn three(site: &Site) -> [Binary; 3] {
    [start(site, 0, &[]).await, start(site, 1, &[]).await, start(site, 2, &[]).await]
}

/// A caller of one gateway.
#[derive(Clone)]
struct Caller {
    http: reqwest::Client,
    data: SocketAddr,
    key: String,
}

impl Caller {
    async fn predict(&self, rows: u64) -> Answer {
        let row = json!({"a": 1, "b": 2, "c": 3});
        let body = json!({ "data": vec![row; usize::try_from(rows).unwrap()] });
        let request = self.http.post(format!("http://{}/predict", self.data)).header("x-api-key", &self.key);
        Answer::of(request.json(&body).send().await.unwrap()).await
    }

    async fn usage(&self) -> Answer {
        let request = self.http.get(format!("http://{}/usage", self.data)).header("x-api-key", &self.key);
        Answer::of(request.send().await.unwrap()).await
    }

    /// Asks for as many rows as `rows` says until that is too much; how many were answered.
    async fn spend(self, mut rows: impl FnMut() -> u64) -> u64 {
        let mut answered = 0;
        loop {
            let rows = rows();
            let answer = self.predict(rows).await;
            match (answer.status, answer.body["code"].as_str()) {
                (200, _) => answered += rows,
                (429, Some("quota_exceeded")) => return answered,
                // On a busy machine an answer of the store can be late. Nothing is charged then.
                (503, Some("quota_unavailable")) => {}
                other => panic!("{other:?}: {}", answer.body),
            }
        }
    }
}

/// What a run looks like.
#[derive(Clone, Copy, Debug)]
struct Run {
    amount: u64,
    /// How many ask each gateway at the same time.
    ways: u64,
    lease: Option<NonZeroU64>,
    /// Rows of a request, at most.
    rows: u64,
}

/// Lets `key` be used up at all three gateways at once.
async fn check_run(gateways: &[Binary; 3], key: &str, run: Run, seed: u64) {
    let mut spending = JoinSet::new();
    let http = reqwest::Client::new();
    let caller = |gateway: &Binary| Caller { http: http.clone(), data: gateway.data, key: key.to_owned() };
    for (number, gateway) in gateways.iter().enumerate() {
        for way in 0..run.ways {
            let mut random = fastrand::Rng::with_seed(seed ^ (number as u64 * 1000 + way));
            spending.spawn(caller(gateway).spend(move || random.u64(1..=run.rows)));
        }
    }
    let admitted: u64 = spending.join_all().await.into_iter().sum();
    println!("{run:?}: {admitted} admitted");
    assert!(admitted <= run.amount, "{run:?}: {admitted}");
    // What is left is less than one request needed; with leases, at each gateway.
    let places = if run.lease.is_some() { 1 } else { gateways.len() as u64 };
    assert!(
        admitted > run.amount.saturating_sub(places * run.rows.saturating_sub(1)).saturating_sub(1),
        "{run:?}: {admitted}"
    );
    for gateway in gateways {
        let usage = caller(gateway).usage().await.body;
        assert!(usage["used"].as_u64().unwrap() >= admitted, "{usage}");
    }
}

/// Each of `repeats` times with requests of one row and of many, exact and with leases.
async fn check_three_processes(amount: u64, ways: u64, repeats: u64) {
    for lease in [NonZeroU64::new(1), None] {
        let server = Server::start();
        let names: Vec<_> = (0..2 * repeats).map(|number| format!("p{number}")).collect();
        let mut plans = String::new();
        for name in &names {
            writeln!(plans, "[plans.{name}]\nquota = {amount}").unwrap();
        }
        let lease_line = lease.map(|lease| format!("lease = {lease}")).unwrap_or_default();
        let quota = format!("store = \"{}\"\non_store_down = \"closed\"\n{lease_line}", server.url());
        let mut site = site(&plans, &quota);
        let keys: Vec<_> = names.iter().map(|name| site.key(name)).collect();
        let gateways = three(&site).await;
        for (seed, pair) in keys.chunks(2).enumerate() {
            for (key, rows) in pair.iter().zip([1, 100]) {
                check_run(&gateways, key, Run { amount, ways, lease, rows }, seed as u64).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_one_redis_admit_exactly_the_quota() {
    check_three_processes(300, 8, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: three processes admit exactly 10,000 of 64-way load each, 20 repeats, 10 min"]
async fn three_processes_on_one_redis_admit_exactly_ten_thousand_twenty_times() {
    check_three_processes(10_000, 64, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_one_redis_keep_to_one_throttle() {
    let server = Server::start();
    let quota = format!("store = \"{}\"\nlease = 1", server.url());
    let mut site = site("[plans.slow]\nrate = 0.01\nburst = 9\n", &quota);
    let key = site.key("slow");
    let gateways = three(&site).await;
    let http = reqwest::Client::new();
    let (mut answered, mut refused) = (0, Vec::new());
    for gateway in gateways.iter().cycle().take(60) {
        let caller = Caller { http: http.clone(), data: gateway.data, key: key.clone() };
        let answer = caller.predict(1).await;
        match answer.status {
            // Decided without the store, because its answer was late.
            200 if answer.header("modelgate-quota") == "degraded" => {}
            200 => answered += 1,
            _ => refused.push(answer),
        }
    }
    assert_eq!(answered, 9);
    let last = refused.last().unwrap();
    assert_eq!((last.status, &last.body["code"]), (429, &json!("rate_limited")));
    assert_eq!(last.body["violated-policies"], json!(["rate"]));
    assert!(last.header("ratelimit").starts_with("\"rate\";r=0;t="), "{}", last.header("ratelimit"));
    assert_eq!(last.header("ratelimit-policy"), "\"rate\";q=9;w=900");
    assert!((1..=100).contains(&last.header("retry-after").parse::<u32>().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_behind_tls_with_a_user_and_a_password_is_used_and_one_that_nobody_vouches_for_is_not() {
    let server = Server::start_with(&["--requirepass", "of-the-default-user"]);
    let rights = "on >secret ~modelgate:* +@connection +evalsha +script|load +time +hmget +hset +del +expire";
    let words = ["ACL", "SETUSER", "gateway"].into_iter().chain(rights.split(' ')).collect::<Vec<_>>();
    let answer = server.command_as("of-the-default-user", &words);
    assert!(answer.contains("+OK\r\n+OK"), "{answer}");
    let tls = Tls::before(&server).await;
    let mut site = site(
        "[plans.five]\nquota = 5\nrate = 1000\n",
        &format!("store = \"rediss://gateway@localhost:{}\"\nstore_password = \"secret\"\nlease = 1", tls.port),
    );
    let key = site.key("five");
    let authority = site.folder().join("authority.pem");
    fs::write(&authority, &tls.authority).unwrap();
    let http = reqwest::Client::new();

    let gateway = start(&site, 0, &[("SSL_CERT_FILE", authority.to_str().unwrap())]).await;
    let caller = Caller { http: http.clone(), data: gateway.data, key: key.clone() };
    eventually("the store to be reached", async || caller.usage().await.header("modelgate-quota").is_empty()).await;
    assert_eq!(caller.clone().spend(|| 1).await, 5);
    assert_eq!(caller.usage().await.body["used"], 5);

    let stranger = start(&site, 1, &[]).await;
    let caller = Caller { http, data: stranger.data, key };
    eventually("the store to be taken for dead", async || {
        let page = caller.http.get(format!("http://{}/metrics", stranger.admin)).send().await.unwrap();
        page.text().await.unwrap().contains("modelgate_quota_store_up{} 0.0")
    })
    .await;
    let usage = caller.usage().await;
    assert_eq!((usage.status, &usage.body["used"]), (200, &Value::Null), "{}", usage.body);
    assert_eq!(usage.header("modelgate-quota"), "degraded");
}
