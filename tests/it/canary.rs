//! No key is ever written anywhere: a gateway that logs all it can, and every file and page it leaves, searched for the
//! keys that were sent to it.
#![expect(clippy::disallowed_methods, reason = "the test runs the binary")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process::{Binary, site};
use crate::support::canary::{Search, base64};
use crate::support::site::eventually;

const IMPORTED: &str = "ApiGatewayKeyThatIsSearchedFor01";
const WRONG: &str = "mg_live_AAAAAAAAAA_aVeryWrongSecretThatNobodyHasMade1234567";

/// Runs `modelgate keys …` on the site's file; what it printed, or what it complained of.
fn keys(file: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    command.arg("keys").args(arguments).stdin(Stdio::null());
    if arguments[0] != "check" {
        command.arg("--config").arg(file);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn the_command_line_knows_the_life_of_a_key() {
    let (_site, file) = site();
    let keys = |arguments: &[&str]| keys(&file, arguments);
    let key = keys(&["create", "--name", "shop", "--scope", "predict:sum"]).unwrap();
    let id = &key[8..18];
    assert!(keys(&["check", key.trim()]).unwrap().contains(id));
    assert!(keys(&["check", WRONG]).unwrap_err().contains("no key"));
    let successor = keys(&["rotate", id, "--overlap", "2h"]).unwrap();
    let replaced = format!("active, replaced by {}", &successor[8..18]);
    let lines = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let listed = lines(&keys(&["list"]).unwrap());
    assert!(listed[0].ends_with(&format!("{replaced}  shop")), "{listed:?}");
    assert!(
        listed[1].contains("predict:sum") && listed[1].contains("  active ") && listed[1].ends_with("  shop"),
        "{listed:?}"
    );
    keys(&["disable", id]).unwrap();
    assert!(keys(&["list"]).unwrap().contains("disabled 2"));
    keys(&["enable", id]).unwrap();
    assert!(keys(&["scope", id, "usage:read", "predict:*"]).unwrap().contains("usage:read predict:*"));
    assert!(keys(&["scope", id]).unwrap_err().contains("SCOPES"), "what was left out does not widen a key");
    assert!(keys(&["scope", id, "--all"]).unwrap().contains("may do: all"));
    assert!(keys(&["expire", id, "90d"]).unwrap().contains("expires: 2"));
    assert!(keys(&["expire", id, "never"]).unwrap().contains("expires: never"));
    assert!(keys(&["expire", id, "2y"]).unwrap_err().contains("weeks, days or hours"));
    assert!(keys(&["scope", id, "admin:keys"]).unwrap_err().contains("usage:read"));
    assert!(keys(&["rotate", id]).unwrap_err().contains("was replaced by"));
    let csv = file.with_file_name("keys.csv");
    fs::write(&csv, format!("Name,Key,UsagePlanIds\nold,{IMPORTED},c7y23b\n")).unwrap();
    let csv = csv.to_str().unwrap();
    assert!(keys(&["revoke", id]).unwrap().contains("within a second"));
    assert!(keys(&["disable", id]).unwrap_err().contains("has ended"));
    assert!(keys(&["import", csv]).unwrap_err().contains("line 2: no plan stands for"));
    let imported = keys(&["import", csv, "--usage-plan", "c7y23b=open"]).unwrap();
    assert_eq!(imported, "keys imported: 1, updated: 0\n");
}

fn check_absent(search: &Search, place: &str, bytes: &[u8]) {
    assert_eq!(search.find(bytes), None, "in {place}");
}

/// A literal field of a header block that is to be indexed nowhere (RFC 7541, 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// `GET /usage` over HTTP/2, as far as its first answer.
async fn ask_http2(binary: &Binary, key: &str) {
    let fields = [
        vec![0x82, 0x86],
        literal(":path", "/usage"),
        literal(":authority", "gate"),
        literal("x-api-key", key),
        literal("authorization", &format!("Bearer {key}")),
    ]
    .concat();
    let length = u8::try_from(fields.len() >> 8).unwrap();
    let low = u8::try_from(fields.len() & 255).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, length, low, 1, 5, 0, 0, 0, 1]);
    bytes.extend(fields);
    let mut stream = TcpStream::connect(binary.data).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut heard = Vec::new();
    // The answer's body names the key's id, or what is wrong.
    while !heard.windows(5).any(|word| word == b"\"plan" || word == b"title") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "closed after {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_written_anywhere_though_everything_is_logged() {
    let (mut site, file) = site();
    let key = site.key("open");
    let csv = file.with_file_name("theirs.csv");
    fs::write(&csv, format!("Name,Key\nold,{IMPORTED}\n")).unwrap();
    keys(&file, &["import", csv.to_str().unwrap(), "--plan", "open"]).unwrap();
    fs::remove_file(csv).unwrap();
    let binary = Binary::serve_with(&file, &[("RUST_LOG", "trace")]);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let url = format!("http://{}/predict", binary.data);
    let body = json!({"data": {"a": 1, "b": 2, "c": 3}}).to_string();
    let mut pages = Vec::new();
    for secret in [&key, IMPORTED, WRONG] {
        for (name, value) in [("x-api-key", secret.to_owned()), ("authorization", format!("Bearer {secret}"))] {
            let request = http.post(&url).header(name, value).header("content-type", "application/json");
            pages.push(request.body(body.clone()).send().await.unwrap().text().await.unwrap());
        }
        let query = http.post(format!("{url}?api_key={secret}")).body(body.clone()).send().await.unwrap();
        assert_eq!(query.status(), 400);
        pages.push(query.text().await.unwrap());
        ask_http2(&binary, secret).await;
    }
    assert!(pages[0].contains("prediction") && pages[3].contains("prediction"), "{pages:?}");
    for page in ["/metrics", "/admin/usage", "/admin/models"] {
        let page = http.get(format!("http://{}{page}", binary.admin)).send().await.unwrap();
        pages.push(page.text().await.unwrap());
    }
    eventually("a sample to be written", async || {
        fs::read_dir(site.folder().join("data/spool")).is_ok_and(|entries| entries.count() > 0)
    })
    .await;
    binary.signal("TERM");
    let (status, log) = binary.ended().await;
    assert!(status.success());
    assert!(log.contains("TRACE") && log.len() > 10_000, "the log says little: {log}");
    let search = Search::new([key.as_str(), IMPORTED, WRONG]);
    check_absent(&search, "the log", log.as_bytes());
    check_absent(&search, "an answer", pages.concat().as_bytes());
    for folder in ["data", "samples"] {
        assert_eq!(search.find_below(&site.folder().join(folder)), Vec::<String>::new());
    }
}

/// `text` in every writing a search must know.
fn written(text: &str) -> Vec<String> {
    let digits = |mark: &str| text.bytes().map(|byte| format!("{mark}{byte:02x}")).collect::<Vec<_>>().concat();
    let (hex, url) = (digits(""), digits("%"));
    let shifted = (0..3).map(|before| base64(format!("{}{text}  ", &"abc"[..before]).as_bytes()));
    let plain = [text.to_owned(), hex.to_uppercase(), hex, url.to_uppercase(), url];
    plain.into_iter().chain(shifted).map(|text| format!("some words, {text} and more")).collect()
}

#[test]
fn the_search_finds_a_key_in_every_writing() {
    const UNKNOWN: &str = "mg_live_7Kq3ZrT0aB_0123456789abcdefghijABCDEFGHIJ010VSnmY";
    let (known, any) = (Search::new([WRONG, IMPORTED]), Search::new([]));
    for secret in [WRONG, IMPORTED, &WRONG[30..], &IMPORTED[8..]] {
        for text in written(secret).into_iter().chain([format!("{:?}", secret.as_bytes())]) {
            assert!(known.find(text.as_bytes()).is_some(), "{text}");
        }
    }
    for text in written(UNKNOWN) {
        assert!(any.find(text.as_bytes()).is_some(), "{text}");
    }
    for text in written(&UNKNOWN.replace('0', "1")) {
        assert_eq!(any.find(text.as_bytes()), None, "this is no key");
    }
}
