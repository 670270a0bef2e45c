//! a registry whose certificate is not good is not spoken to, and never hears the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use modelgate::app::{self, Surroundings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::hostile_registry::version;
use crate::support::site::{Site, eventually};

/// Which certificate a server shows.
#[derive(Clone, Copy, Debug)]
enum Shown {
    Good,
    OfAnotherName,
    Expired,
    SelfSigned,
}

/// A registry over TLS that answers every question with version 1, pending, and counts those it could read.
struct Tls {
    port: u16,
    heard: Arc<AtomicUsize>,
    /// What a client has to trust for the good one.
    authority: String,
}

fn server(shown: Shown) -> (ServerConfig, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let name = if let Shown::OfAnotherName = shown { "other.example" } else { "localhost" };
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if let Shown::Expired = shown {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    }
    let key = KeyPair::generate().unwrap();
    let certificate = match shown {
        Shown::SelfSigned => params.self_signed(&key).unwrap(),
        _ => params.signed_by(&key, &authority).unwrap(),
    };
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = ServerConfig::builder().with_no_client_auth();
    (config.with_single_cert(vec![certificate.der().clone()], key).unwrap(), authority.pem())
}

impl Tls {
    #[expect(clippy::disallowed_methods, reason = "a test's server lives as long as its runtime")]
    async fn start(shown: Shown) -> Self {
        let (config, authority) = server(shown);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&heard);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let mut question = [0; 4096];
                if stream.read(&mut question).await.is_ok_and(|length| length > 0) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                let mut pending = version();
                pending["status"] = "PENDING_REGISTRATION".into();
                let body = serde_json::json!({ "model_version": pending }).to_string();
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { port, heard, authority }
    }

    /// What a gateway that trusts this server's authority, or does not, says of it.
    async fn trouble(&self, scheme: &str, trusts: bool) -> String {
        let mut site = Site::new(&format!(
            "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"m\"\nselect = \"alias:champion\"\n\
             [registry]\nuri = \"{scheme}://localhost:{}\"\ntoken = \"secret\"\n{}",
            self.port,
            if trusts { "ca_file = \"{folder}/ca.pem\"\n" } else { "" }
        ));
        std::fs::write(site.folder().join("ca.pem"), &self.authority).unwrap();
        let gate = site.start("open").await;
        let status = gate.says("sum", "what it thinks of the registry", |status| status["trouble"].is_string()).await;
        gate.stop().await;
        status["trouble"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_cannot_prove_its_name_never_hears_the_token() {
    for shown in [Shown::OfAnotherName, Shown::Expired, Shown::SelfSigned] {
        let server = Tls::start(shown).await;
        let trouble = server.trouble("https", true).await;
        assert!(trouble.contains("certificate"), "{shown:?}: {trouble}");
        assert_eq!(server.heard.load(Ordering::SeqCst), 0, "{shown:?}");
    }
    let good = Tls::start(Shown::Good).await;
    let trouble = good.trouble("https", false).await;
    assert!(trouble.contains("certificate"), "an authority nobody trusts: {trouble}");
    assert_eq!(good.heard.load(Ordering::SeqCst), 0);
    let trouble = good.trouble("http", true).await;
    assert!(!trouble.contains("not READY"), "{trouble}");
    assert_eq!(good.heard.load(Ordering::SeqCst), 0);
    let trouble = good.trouble("https", true).await;
    assert!(trouble.contains("not READY"), "{trouble}");
    eventually("the question", async || good.heard.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_file_that_is_none_is_said_at_the_start() {
    for (text, says) in [(None, "cannot read certificates"), (Some("no PEM"), "no certificate in it")] {
        let mut site = Site::new(
            "[plans.open]\n[[model]]\nname = \"sum\"\n[registry]\nuri = \"https://localhost\"\n\
             ca_file = \"{folder}/ca.pem\"\n",
        );
        site.key("open");
        if let Some(text) = text {
            std::fs::write(site.folder().join("ca.pem"), text).unwrap();
        }
        let surroundings = Surroundings { clock: modelgate::clock::Clock::system(), seed: 7 };
        let error = Box::pin(app::start(site.config(), surroundings)).await.unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }
}
