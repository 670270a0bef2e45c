//! What is JSON and what is not, at the predict routes: texts of our own making, each as the value of a number, as the
//! value of a text and as the whole body, with the status it must have. Then texts that have broken programs before, in
//! every place a caller can write to: no answer is a 5xx, and every line of the log stays one JSON object.
#![expect(clippy::disallowed_methods, reason = "the test's own client")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::process::{Binary, site_of};
use crate::support::gate::{self, Connection, Gate};
use crate::support::site::Site;

const MODEL: &str = "text-classes";
const GOOD: &str = r#"{"data":{"Age":40,"Annual_Income":52000.5,"Outstanding_Debt":1200,"Credit_Mix":"Good"}}"#;

/// What a text is. Each has one answer in each place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// A number that the model's floats hold.
    Number,
    /// A number beyond the model's floats, or one of the words JSON has no place for.
    NotFinite,
    Text,
    /// A text that a feature may not hold: NUL ends it for ONNX Runtime.
    TextWithNul,
    /// `true` or `false`.
    Boolean,
    Null,
    List,
    Object,
    /// No JSON.
    Broken,
}

impl Is {
    /// The statuses as a required number, as an optional text, and as a body.
    fn statuses(self) -> [u16; 3] {
        match self {
            Self::Number => [200, 422, 400],
            Self::NotFinite | Self::TextWithNul | Self::Boolean | Self::List => [422, 422, 400],
            Self::Text | Self::Null => [422, 200, 400],
            Self::Object => [422, 422, 422],
            Self::Broken => [400, 400, 400],
        }
    }
}

/// Texts by what they are.
struct Corpus(Vec<(Vec<u8>, Is)>);

impl Corpus {
    fn add<T: Into<Vec<u8>>>(&mut self, is: Is, texts: impl IntoIterator<Item = T>) {
        self.0.extend(texts.into_iter().map(|text| (text.into(), is)));
    }
}

fn numbers(corpus: &mut Corpus) {
    corpus.add(
        Is::Number,
        [
            "0",
            "-0",
            "-0.0",
            "1",
            "-1",
            "10",
            "0.5",
            "-0.5",
            "1e5",
            "1E5",
            "1e+5",
            "1e-5",
            "1E+05",
            "5e-324",
            "1e-400",
            "0e0",
            "0e+1",
            "0.1e-999999",
            "0.0000000000000000000000001",
            "9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "0.30000000000000004",
            "2.2250738585072011e-308",
        ],
    );
    corpus.add(Is::Number, [format!("0.{}", "1".repeat(5000)), "9".repeat(38), format!("{}e-4000", "1".repeat(4000))]);
    corpus.add(Is::NotFinite, ["1e309", "-1e309", "1e400", "1e999999999999", "NaN", "Infinity", "-Infinity"]);
    // More than the 32 bits of the model's own input hold.
    corpus.add(Is::NotFinite, ["1e39", "-1e39", "123.456e78", "1e308", "-1.7976931348623157e308"]);
    corpus.add(Is::NotFinite, ["9".repeat(400), format!("1{}", "0".repeat(5000))]);
    corpus.add(
        Is::Broken,
        [
            "+1",
            "++1",
            "--1",
            "-",
            "+",
            ".",
            "1.",
            "-1.",
            ".5",
            "-.5",
            "1.e1",
            "1e",
            "1E",
            "1e+",
            "1e-",
            "1ee1",
            "1e1.5",
            "1e1e1",
            "01",
            "-01",
            "00",
            "-00",
            "0x10",
            "0X1F",
            "0b1",
            "0o7",
            "1_000",
            "1 000",
            "1 2",
            "1-1",
            "1+1",
            "1f",
            "1L",
            "1n",
            "0 1",
            "- 1",
            "1. 5",
            "1 .5",
            "nan",
            "NAN",
            "-NaN",
            "+NaN",
            "inf",
            "Inf",
            "-inf",
            "infinity",
            "+Infinity",
            "NaN1",
            "\u{661}",
            "\u{ff11}",
            "1\u{660}",
            "\u{221e}",
            "1,5.5",
            "1;",
            "1!",
            "$1",
            "1%",
            "1e\u{661}",
            "\u{2212}1",
        ],
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn texts(corpus: &mut Corpus) {
    corpus.add(
        Is::Text,
        [
            r#""""#,
            r#"" ""#,
            r#""a""#,
            r#""null""#,
            r#""\"""#,
            r#""\\""#,
            r#""\/""#,
            r#""\b\f\n\r\t""#,
            r#""\u0041""#,
            r#""\u00e9\u00E9""#,
            r#""\ud83d\ude42""#,
            r#""\uD834\udd1e""#,
            r#""\uffff""#,
            r#""\ufffe""#,
            r#""\u2028\u2029""#,
            r#""\ufeff""#,
            r#""\u202e\u200f""#,
            r#""\udbff\udfff""#,
            r#""\u007f""#,
            r#""\\u0000""#,
            r#""\\\\""#,
            "\"\u{7f}\"",
            "\"\u{80}\u{9f}\"",
            "\"\u{2028}\u{2029}\"",
            "\"\u{feff}\"",
            "\"\u{fffd}\u{fffe}\u{ffff}\"",
            "\"\u{10ffff}\u{1fffe}\"",
            "\"\u{e000}\u{f8ff}\"",
            "\"\u{202e}\u{2066}\"",
            "\"e\u{301}\u{301}\u{301}\"",
            "\"\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\"",
            "\"{}[],:\"",
            "\"//\"",
            "\"/* */\"",
        ],
    );
    corpus.add(Is::Text, [format!("\"{}\"", "x".repeat(4096)), format!("\"{}\"", "\\u0041".repeat(4096))]);
    corpus.add(Is::TextWithNul, [r#""\u0000""#, r#""a\u0000b""#]);
    // Every character that must be written as an escape, every escape there is not.
    corpus.add(Is::Broken, (0..0x20_u8).map(|byte| vec![b'"', byte, b'"']));
    let escapes = (0x20..0x7f_u8).filter(|letter| !br#""\/bfnrtu"#.contains(letter));
    corpus.add(Is::Broken, escapes.map(|letter| vec![b'"', b'\\', letter, b'"']));
    corpus.add(
        Is::Broken,
        [
            r#""\u""#,
            r#""\u0""#,
            r#""\u00""#,
            r#""\u004""#,
            r#""\u004g""#,
            r#""\u 041""#,
            r#""\u+041""#,
            r#""\u-041""#,
            r#""\U0041""#,
            r#""\x41""#,
            r#""\u{41}""#,
            r#""\101""#,
            r#""\ud800""#,
            r#""\udbff""#,
            r#""\udc00""#,
            r#""\udfff""#,
            r#""\ude42\ud83d""#,
            r#""\ud83d\ud83d""#,
            r#""\ud83dx""#,
            r#""\ud83d\n""#,
            r#""\ud83d\u0041""#,
            r#""\ud83d\u""#,
            r#""\ud83d\""#,
            r#"""""#,
            r#""a"b""#,
            r#""a" "b""#,
            r"'a'",
            r"`a`",
            "\u{201c}a\u{201d}",
            r#""a"#,
            r#"a""#,
            "a",
            "\"a\nb\"",
            r#""\"#,
            r#""a\"#,
        ],
    );
    let no_utf8: [&[u8]; 16] = [
        b"\x80",
        b"\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xe2\x82",
        b"\xe9",
    ];
    corpus.add(Is::Broken, no_utf8.map(|bytes| [b"\"", bytes, b"\""].concat()));
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn structures(corpus: &mut Corpus) {
    corpus.add(Is::Boolean, ["true", "false", " true ", "\ttrue\r\n"]);
    corpus.add(Is::Null, ["null", "\n\nnull\n"]);
    corpus
        .add(Is::List, ["[]", "[ ]", "[1]", "[1,2]", "[[]]", "[null]", "[\"a\"]", "[{}]", "[1,\"a\",null,{\"b\":[]}]"]);
    corpus.add(Is::Object, ["{}", "{ }", r#"{"a":1}"#, r#"{"a":{"b":{"c":null}}}"#, r#"{"":0}"#, r#"{"\u0000":0}"#]);
    corpus.add(Is::List, [format!("{}{}", "[".repeat(29), "]".repeat(29))]);
    corpus.add(Is::Broken, [33, 128, 1000, 100_000].map(|depth| "[".repeat(depth)));
    corpus.add(Is::Broken, [33, 128, 1000, 100_000].map(|depth| r#"{"a":"#.repeat(depth)));
    corpus.add(Is::Broken, [33, 128, 100_000].map(|depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth))));
    corpus.add(
        Is::Broken,
        [
            "",
            ",",
            ":",
            "[",
            "]",
            "{",
            "}",
            "[1",
            "1]",
            "{1}",
            "[1,]",
            "[,1]",
            "[,]",
            "[1,,2]",
            "[1 2]",
            "[1:2]",
            "[}",
            "{]",
            "[1}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1,,\"b\":2}",
            "{,\"a\":1}",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\"=1}",
            "{\"a\":1;\"b\":2}",
            "{a:1}",
            "{'a':1}",
            "{1:1}",
            "{null:1}",
            "{[]:1}",
            "{\"a\"::1}",
            "{\"a\":1:2}",
            "[1,2,]",
            "[1;2]",
            "(1)",
            "<1>",
            "True",
            "False",
            "None",
            "TRUE",
            "Null",
            "NULL",
            "nil",
            "undefined",
            "tru",
            "truee",
            "nul",
            "nulll",
            "t",
            "true false",
            "true,",
            "1//x",
            "1/*x*/",
            "1#x",
            "/**/1",
            "//\n1",
            "<!--x-->1",
            "\\u0031",
            "@",
            "*",
            "&",
            "|",
            "~",
            "^",
            "\0",
            "1\0",
            "\0 1",
            "\u{b}1",
            "1\u{c}",
            "\u{a0}1",
            "1\u{a0}",
            "\u{2028}1",
            "\u{3000}1",
            "\u{feff}1",
            "1\u{feff}",
            "\u{200b}1",
            "\u{85}1",
            "\u{1}",
            "[1]x",
            "{}x",
            "[][]",
            "{}{}",
            "\"a\":1",
            "[\"a\":1]",
            "...",
            "[...]",
            "new Date(0)",
            "/a/",
            "$ref",
            "<null/>",
            "---\na: 1",
            "a: 1",
        ],
    );
}

fn corpus() -> Vec<(Vec<u8>, Is)> {
    let mut corpus = Corpus(Vec::new());
    numbers(&mut corpus);
    texts(&mut corpus);
    structures(&mut corpus);
    corpus.0
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(60)].escape_ascii().to_string();
    if bytes.len() > 60 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

/// A caller that stays on one connection, and takes another where the gateway closed it.
struct Caller<'g> {
    gate: &'g Gate,
    connection: Connection,
}

impl<'g> Caller<'g> {
    async fn new(gate: &'g Gate) -> Self {
        Self { gate, connection: gate.connect().await }
    }

    async fn post(&mut self, body: &[u8]) -> gate::Answer {
        let (key, length) = (&self.gate.key, body.len());
        let head = format!("POST /predict HTTP/1.1\r\nHost: gate\r\n{key}\r\nContent-Length: {length}\r\n\r\n");
        self.connection.send([head.as_bytes(), body].concat()).await;
        let answer = self.connection.answer().await;
        if answer.header("connection") == Some("close") {
            self.connection = self.gate.connect().await;
        }
        answer
    }

    /// What is wrong with the answer to `body`, if anything is.
    async fn check(&mut self, body: &[u8], status: u16) -> Option<String> {
        let answer = self.post(body).await;
        let code = match answer.status {
            200 => "",
            400 => "malformed_json",
            422 => "invalid_input",
            _ => "no other",
        };
        let is_right = answer.status == status && answer.code() == code;
        (!is_right).then(|| format!("{}\n    {status} expected: {}", shown(body), answer.body))
    }
}

fn in_place(place: usize, text: &[u8]) -> Vec<u8> {
    let (before, after): (&[u8], &[u8]) = match place {
        0 => (br#"{"data":{"Age":40,"Annual_Income":"#, br#","Outstanding_Debt":1200}}"#),
        1 => (br#"{"data":[{"Age":40,"Annual_Income":1,"Outstanding_Debt":1200,"Credit_Mix":"#, b"}]}"),
        _ => (b"", b""),
    };
    [before, text, after].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_text_is_json_or_is_not_wherever_it_stands() {
    let gate = Gate::serving(gate::config(), MODEL).await;
    let (mut caller, mut wrong, mut counts) = (Caller::new(&gate).await, Vec::new(), BTreeMap::new());
    for (text, is) in corpus() {
        for (place, status) in is.statuses().into_iter().enumerate() {
            *counts.entry(status).or_insert(0) += 1;
            wrong.extend(caller.check(&in_place(place, &text), status).await.map(|wrong| format!("{is:?} {wrong}")));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(counts.values().sum::<u32>() > 1000 && counts[&200] > 60, "the corpus has shrunk: {counts:?}");
    assert_eq!(caller.post(GOOD.as_bytes()).await.status, 200);
}

/// A good body in another encoding.
fn encoded(unit: impl Fn(char) -> Vec<u8>, mark: &[u8]) -> Vec<u8> {
    mark.iter().copied().chain(GOOD.chars().flat_map(unit)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_body_is_one_from_its_first_byte_to_its_last() {
    let gate = Gate::serving(gate::config(), MODEL).await;
    let (mut caller, good) = (Caller::new(&gate).await, GOOD.as_bytes());
    let ascii = |letter: char| u16::try_from(u32::from(letter)).unwrap();
    let little = |letter: char| ascii(letter).to_le_bytes().to_vec();
    let big = |letter: char| ascii(letter).to_be_bytes().to_vec();
    let mut bodies = vec![
        [b"\xef\xbb\xbf", good].concat(),
        encoded(little, b"\xff\xfe"),
        encoded(little, b""),
        encoded(big, b"\xfe\xff"),
        encoded(big, b""),
        encoded(|letter| u32::from(letter).to_le_bytes().to_vec(), b"\xff\xfe\0\0"),
        [good, b"\0"].concat(),
        [good, b"\x1a"].concat(),
        [b"\x1e", good, b"\n"].concat(),
        [b")]}'\n", good].concat(),
        good.repeat(2),
        [good, b"\n", good].concat(),
    ];
    bodies.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for at in 0..good.len() {
        for byte in [0, 0x1f, 0xff, 0xc3] {
            let mut body = good.to_vec();
            body.insert(at, byte);
            bodies.push(body);
        }
    }
    let mut wrong = Vec::new();
    for body in &bodies {
        wrong.extend(caller.check(body, 400).await);
    }
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), bodies.len(), wrong.join("\n"));
}

/// Resident memory of a process at its highest, in bytes.
fn high_water(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn text_classes(more: &str) -> (Site, std::path::PathBuf) {
    let text = format!("[plans.open]\n[[model]]\nname = \"{MODEL}\"\nselect = \"alias:champion\"\n{more}");
    let site = site_of(&text);
    site.0.register(MODEL, 1, MODEL);
    site.0.promote(MODEL, 1);
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_body_takes_no_more_memory_than_its_limit() {
    const LIMIT: u64 = 2 << 20;
    let (mut site, file) = text_classes("");
    let key = site.key("open");
    // What it logs is not what is measured.
    let binary = Binary::serve_with(&file, &[("RUST_LOG", "info")]);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let url = format!("http://{}/predict", binary.data);
    let post = async |body: reqwest::Body| {
        let request = http.post(&url).header("x-api-key", &key).header("content-type", "application/json").body(body);
        // The gateway may answer and close before all was sent.
        request.send().await.map_or(413, |answer| answer.status().as_u16())
    };
    assert_eq!(post(GOOD.into()).await, 200);
    // As much as may be, in every shape: so much is the limit's.
    let zeros = |count: usize| format!(r#"{{"data":{{"Age":[{}0]}}}}"#, "0,".repeat(count));
    let members = |count: usize| {
        (0..count).fold("{".to_owned(), |mut text, i| {
            write!(text, "\"k{i}\":0,").unwrap();
            text
        }) + "\"Age\":0}"
    };
    for body in [zeros(1_000_000), members(150_000), format!(r#"{{"Credit_Mix":"{}"}}"#, "x".repeat(2_000_000))] {
        assert!((1 << 20..LIMIT).contains(&(body.len() as u64)), "{}", body.len());
        assert_eq!(post(body.into()).await, 422);
    }
    let before = high_water(binary.id());
    let chunked =
        |text: String| reqwest::Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(text)]));
    for body in [zeros(10_000_000), members(1_000_000), format!(r#"{{"Credit_Mix":"{}"}}"#, "x".repeat(100_000_000))] {
        assert_eq!(post(body.clone().into()).await, 413);
        assert_eq!(post(chunked(body)).await, 413);
    }
    let grown = high_water(binary.id()) - before;
    assert!(grown <= 2 * LIMIT, "{grown} bytes more for bodies that are refused");
    assert_eq!(post(GOOD.into()).await, 200);
}

/// Texts that have broken programs: words and numbers of other languages, letters that are more than they seem, and
/// commands for whatever reads them next.
fn naughty() -> Vec<String> {
    let words = "undefined undef null NULL (null) nil NIL true false True None hasOwnProperty then constructor __proto__ \
                 toString NaN Infinity -Infinity INF 1E400 0x0 0xffffffff 1/0 0/0 -1 2147483648 1e1000 0,0 00 1.0.0 CON PRN \
                 AUX NUL COM1 LPT1 . .. ... / // \\ \\\\ ~ * ? % %% %s %n %d%d%n %x%x%x%x {0} {} {{7*7}} ${7*7} #{7*7} <%= 7*7 %> \
                 $HOME $(id) `id` ;id |id &id && || > < >/dev/null ../../../etc/passwd ..%2f..%2fetc%2fpasswd file:///etc/passwd \
                 ' '' \" \"\" '\" ; -- /* */ # ${jndi:ldap://x/y} =1+1 @SUM(1) +1 -cmd|' _ __ --version -rf";
    let spaced = [
        "' OR 1=1 --",
        "'; DROP TABLE keys; --",
        "\" OR \"\"=\"",
        "1; SELECT pg_sleep(9)",
        "admin'--",
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "javascript:alert(1)",
        "<svg/onload=alert(1)>",
        "&lt;b&gt; &#0; &#x27;",
        "<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><a>&b;</a>",
        "<![CDATA[x]]>",
        "=cmd|' /C calc'!A0",
        "a\tb",
        " leading",
        "trailing ",
        "two  spaces",
        "() { :;}; echo",
        "2026-13-45T25:61:61Z",
        "1,000,000.00",
        "1 000,00",
        "level=ERROR msg=\"forged\"",
        "{\"level\":\"INFO\",\"message\":\"forged\"}",
        "mg_live_",
        "Bearer x",
        "x-api-key: x",
    ];
    let letters = [
        "ação",
        "Ω≈ç√∫˜µ≤≥÷",
        "田中さんにあげて下さい",
        "パーティーへ行かないか",
        "和製漢語",
        "사회과학원",
        "𠜎𠜱𠝹",
        "Ⱥ Ⱦ",
        "ŐŰőű",
        "השמים",
        "الله",
        "مُنَاقَشَةُ",
        "ﷺ",
        "Ṱ̺̺̕o͞ ̷i̲̬͇̪͙n̝̗͕v̟̜̘̦͟o̶̙̰̠kè͚̮̺̪̹̱̤",
        "👩🏽‍🚀",
        "👾 🙇 💁",
        "🇺🇸🇷🇺",
        "１２３",
        "١٢٣",
        "ʇǝɯɐ",
        "ﬁ ﬂ",
        "İi̇ıI",
        "ẞß",
        "ǅ",
        "Ａ",
        "\u{0}",
        "\u{1}\u{1f}",
        "\u{7f}",
        "\u{80}\u{85}\u{9f}",
        "\u{a0}",
        "\u{ad}",
        "\u{200b}",
        "\u{200d}",
        "\u{200e}\u{200f}",
        "\u{202a}\u{202e}x",
        "\u{2028}",
        "\u{2029}",
        "\u{2060}",
        "\u{2066}x\u{2069}",
        "\u{3000}",
        "\u{feff}",
        "\u{fff9}\u{fffb}",
        "\u{fffd}",
        "\u{fffe}",
        "\u{ffff}",
        "\u{1fffe}",
        "\u{e0001}\u{e007f}",
        "\u{f8ff}",
        "\u{10ffff}",
        "\r\n",
        "\n",
        "\r",
        "a\nb",
        "a\r\nSet-Cookie: b",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{1b}]0;title\u{7}",
        "\u{8}\u{8}",
        "\u{c}",
    ];
    let long = ["x".repeat(4096), "x".repeat(4097), "é".repeat(3000), "\u{301}".repeat(2000), "\"\\".repeat(1500)];
    let all = words.split_whitespace().chain(spaced).chain(letters).chain([""]).map(str::to_owned);
    all.chain(long).collect()
}

/// `text` as it goes into an address: every byte by its number.
fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").unwrap();
        encoded
    })
}

fn row(mix: &str) -> Value {
    json!({"Age": 40, "Annual_Income": 1, "Outstanding_Debt": 2, "Credit_Mix": mix})
}

/// A request with a text in it: where it is, and which statuses it may be answered with.
type Told = (&'static str, reqwest::RequestBuilder, &'static [u16]);

/// Who writes texts wherever a caller can write.
struct Scribbler {
    http: reqwest::Client,
    data: std::net::SocketAddr,
    key: String,
}

impl Scribbler {
    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("http://{}{path}", self.data)).body(body.to_string());
        request.header("content-type", "application/json")
    }

    fn ours(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.post(path, body).header("x-api-key", &self.key)
    }

    fn in_bodies(&self, text: &str) -> Vec<Told> {
        let mut named = row("Good");
        named[text] = json!(1);
        let fits = text.len() <= 4096 && !text.contains('\0');
        vec![
            ("value", self.ours("/predict", &row(text)), if fits { &[200] } else { &[422] }),
            ("feature", self.ours("/predict", &named), &[422]),
            ("feature among rows", self.ours("/predict", &json!({ "data": [row("Good"), named] })), &[422]),
        ]
    }

    fn in_addresses(&self, text: &str) -> Vec<Told> {
        if [".", ".."].contains(&text) {
            // The client takes them for steps in the path, and does not send them.
            return Vec::new();
        }
        let (good, text) = (row("Good"), percent(text));
        vec![
            ("model", self.ours(&format!("/models/{text}/predict"), &good), &[404]),
            ("path", self.ours(&format!("/{text}"), &good), &[404]),
            ("query", self.ours(&format!("/predict?a={text}&{text}"), &good), &[200]),
        ]
    }

    fn in_headers(&self, text: &str) -> Vec<Told> {
        // What no header can hold is the business of tests/it/server.rs.
        let Ok(value) = reqwest::header::HeaderValue::from_bytes(text.as_bytes()) else { return Vec::new() };
        let good = row("Good");
        let ours = ["x-request-id", "traceparent", "user-agent", "idempotency-key", "request-timeout-ms", "accept"];
        let ours = ours.map(|name| (name, self.ours("/predict", &good).header(name, &value), &[200, 400, 504][..]));
        let keys = ["x-api-key", "authorization"];
        let keys = keys.map(|name| (name, self.post("/predict", &good).header(name, &value), &[401, 429][..]));
        ours.into_iter().chain(keys).collect()
    }

    /// Writes `text` everywhere; what is wrong with the answers.
    async fn tell(&self, text: &str) -> Vec<String> {
        let mut requests = self.in_bodies(text);
        // What is longer is too long for a head, whatever it says.
        if text.len() <= 1000 {
            requests.extend(self.in_addresses(text).into_iter().chain(self.in_headers(text)));
        }
        let mut wrong = Vec::new();
        for (what, request, statuses) in requests {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let id = answer.headers().get("x-request-id").and_then(|id| Some(id.to_str().ok()?.to_owned()));
            let body = answer.text().await.unwrap();
            let told = serde_json::from_str::<Value>(&body)
                .ok()
                .and_then(|body| Some(body["request_id"].as_str()?.to_owned()));
            if !statuses.contains(&status) || id.is_none() || told != id {
                wrong.push(format!("{what} {text:?}: {status} {id:?} {body}"));
            }
        }
        wrong
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_that_break_programs_break_nothing_and_no_line_of_the_log() {
    let (mut site, file) = text_classes("[telemetry]\nlog_format = \"json\"\n");
    let key = site.key("open");
    let binary = Binary::serve_with(&file, &[("RUST_LOG", "debug")]);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let scribbler = Scribbler { http: http.clone(), data: binary.data, key };
    // From here on the key is known from this address, and does not wait for what is tried in its place.
    assert_eq!(scribbler.tell("Good").await, Vec::<String>::new());
    let texts = naughty();
    assert!(texts.len() > 180, "the list has shrunk to {}", texts.len());
    let mut wrong = Vec::new();
    for text in &texts {
        wrong.extend(scribbler.tell(text).await);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    for page in ["/metrics", "/admin/models", "/admin/usage"] {
        let page = http.get(format!("http://{}{page}", binary.admin)).send().await.unwrap();
        assert_eq!(page.status(), 200);
        page.text().await.unwrap();
    }
    binary.signal("TERM");
    let (status, log) = binary.ended().await;
    assert!(status.success());
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}")))
        .collect();
    assert!(lines.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()));
    let requests = lines.iter().filter(|line| line["route"].is_string() && line["status"].is_number()).count();
    assert!(requests > 5 * texts.len(), "{requests} requests in a log of {} lines", lines.len());
    assert!(lines.last().unwrap()["message"].as_str().unwrap().contains("stopped in order"));
}
