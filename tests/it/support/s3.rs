//! An S3 in this process: `s3s-fs` over a temporary folder, which checks signatures and honours `If-None-Match`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The only bucket.
pub(crate) const BUCKET: &str = "samples";
/// The secret that belongs to the access key.
pub(crate) const SECRET: &str = "the right secret";
pub(crate) const ACCESS_KEY: &str = "AKIATEST";

/// A running, or stopped, S3.
pub(crate) struct S3 {
    folder: TempDir,
    address: SocketAddr,
    service: S3Service,
    tasks: JoinSet<()>,
}

impl S3 {
    /// Starts with an empty bucket.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut s3 = Self { folder, address, service: service.build(), tasks: JoinSet::new() };
        s3.serve(listener);
        s3
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Starts again on the same port with the same objects.
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client over plain HTTP that tries once.
    pub(crate) fn client(&self, secret: &str) -> Client {
        client(self.address, secret)
    }

    /// Every object of samples: its key and its bytes, by key.
    pub(crate) fn objects(&self) -> Vec<(String, Vec<u8>)> {
        samples(&self.folder.path().join(BUCKET))
    }

    /// Every object of the bucket, the manifests too.
    pub(crate) fn everything(&self) -> Vec<(String, Vec<u8>)> {
        files(&self.folder.path().join(BUCKET))
    }

    /// Changes an object behind the protocol's back.
    pub(crate) fn overwrite(&self, key: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(BUCKET).join(key), bytes).unwrap();
    }

    fn serve(&mut self, listener: TcpListener) {
        let service = self.service.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                connections.spawn(async move {
                    // A client may hang up whenever it likes.
                    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
    }
}

/// A client of whatever listens at `address`.
pub(crate) fn client(address: SocketAddr, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(ACCESS_KEY, secret, None, None, "test"))
        .endpoint_url(format!("http://{address}"))
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// Every file of samples below `folder`: its path from there and its bytes, by path.
pub(crate) fn samples(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = files(folder);
    found.retain(|(name, _)| !name.split('/').any(|part| part == "_manifest"));
    found
}

/// Every file below `folder`: its path from there and its bytes, by path.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
