//! Where fakes listen.

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Serves `router` on a free port until the set is dropped; gives back its URL.
pub(crate) async fn serve(router: Router) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (endpoint, server)
}
