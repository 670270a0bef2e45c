//! What the module promises, case by case.

use super::*;

fn client(uri: &str, credentials: Credentials) -> Client {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Mlflow {
        uri: uri.parse().unwrap(),
        credentials,
        timeout: std::time::Duration::from_secs(1),
        workspace: None,
        max_bytes: 1,
        ca_file: None,
        artifact_roots: Vec::new(),
        s3_endpoint: None,
    };
    Client::new(config, reqwest::Client::builder().build().unwrap())
}

#[test]
fn addresses_are_below_the_servers_own_path_and_escape_what_is_not_theirs() {
    for base in ["http://h:5000/mlflow", "http://h:5000/mlflow/", "http://u:p@h:5000/mlflow?a=b#c"] {
        let url = client(base, Credentials::None).url("a/b c%2F", &[("name", "x&y=z +é/..")]);
        assert_eq!(url.as_str(), "http://h:5000/mlflow/a/b%20c%252F?name=x%26y%3Dz+%2B%C3%A9%2F..");
    }
    let url = client("https://h", Credentials::None).url("a", &[]);
    assert_eq!(url.as_str(), "https://h/a");
}

#[test]
fn given_credentials_go_before_those_in_the_address() {
    let from_address = client("http://us%40er:p%3Aw@h", Credentials::None);
    let Credentials::Basic { username, password } = &from_address.config.credentials else { panic!("none taken") };
    assert_eq!((username.as_str(), password.expose_secret()), ("us@er", "p:w"));
    let given = client("http://user:pw@h", Credentials::Bearer("token".into()));
    assert!(matches!(given.config.credentials, Credentials::Bearer(_)));
    assert_eq!(given.config.uri.as_str(), "http://h/");
    assert!(matches!(client("http://h", Credentials::None).config.credentials, Credentials::None));
}

#[test]
fn names_are_quoted_by_the_quotes_they_do_not_hold() {
    assert_eq!(filter_by_name("credit score").unwrap(), "name='credit score'");
    assert_eq!(filter_by_name("it's").unwrap(), "name=\"it's\"");
    assert_eq!(filter_by_name("say \"hi\"").unwrap(), "name='say \"hi\"'");
    assert_eq!(filter_by_name("bo'th\""), None);
}
