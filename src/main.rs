//! The command line: what is typed → one call, and how that call ended → an exit code.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use jiff::{Span, SpanRelativeTo, Timestamp};
use modelgate::app::{self, operate};
use modelgate::auth::{ApiKeys, KeyRecord};
use modelgate::clock::Clock;
use modelgate::config::{self, ConfigErrors, Flags, Purpose, Sources};
use secrecy::ExposeSecret as _;

/// `EX_CONFIG` of sysexits.h.
const CONFIG_ERROR: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  modelgate demo
      A bundled model, a key and a curl line, with no network and no account.
  modelgate serve --registry https://dagshub.com/user/repository.mlflow --model credit-score@champion
      Follow one model of a registry. `serve` may be left out.
  modelgate serve --config gate.toml --listen 0.0.0.0:8080
      What the file says, on another address.
  modelgate check-config --config gate.toml
      Every mistake in the file at once; else what is in effect, and from where.
  modelgate keys create --name shop --plan basic
      An API key, shown once.
  modelgate models history credit-score
      What a running gateway served, refused and rolled back, and why.

Exit codes: 0 done, 1 failed, 2 not understood, 78 mistakes in the configuration.";

/// A gateway between apps and an MLflow model registry: swaps model versions live, meters callers, measures features.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Gateway,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models; the default when no command is given
    Serve(Gateway),
    /// Serve a bundled model, with no network and no account
    Demo(Addresses),
    /// Show every mistake in the configuration, or what is in effect and from where
    CheckConfig(Gateway),
    /// Try one version within limits, as the gateway asks on standard input
    #[command(hide = true)]
    Probe,
    /// Make, list and end API keys
    #[command(subcommand)]
    Keys(Keys),
    /// See and choose which versions a running gateway serves
    #[command(subcommand)]
    Models(Models),
    /// Judge one version as a gateway would before it serves it, without a gateway
    Verify(Verify),
    /// Check everything a gateway needs from outside, one line each
    Doctor(Gateway),
}

/// A gateway's everyday keys. Flags go over the environment, and that over the file.
#[derive(Debug, Args)]
struct Gateway {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model registry: a URL, or `file:DIRECTORY`
    #[arg(long, value_name = "URI")]
    registry: Option<String>,
    /// A model to serve; may be given more than once
    #[arg(long = "model", value_name = "NAME[@ALIAS|/VERSION]")]
    models: Vec<String>,
    /// Where keys, usage, models and samples are kept
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    #[command(flatten)]
    addresses: Addresses,
}

#[derive(Debug, Args)]
struct Addresses {
    /// Where callers connect
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Where operators connect
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Make a key and show it, once
    Create {
        /// Whose key it is, for people
        #[arg(long)]
        name: String,
        /// The usage plan; may be left out where there is only one
        #[arg(long)]
        plan: Option<String>,
        /// How long it lives, such as 90d; for ever if left out
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<Span>,
        #[command(flatten)]
        place: Place,
    },
    /// Show every key, without its secret
    List {
        #[command(flatten)]
        place: Place,
    },
    /// End a key; gateways notice within a second
    Revoke {
        /// The key's id, as `keys list` shows it
        id: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Where the keys are: the gateway's own data directory.
#[derive(Debug, Args)]
struct Place {
    /// The gateway's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's data directory
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Models {
    /// Show every model: what serves, what is on trial, what is wanted
    List {
        #[command(flatten)]
        desk: Desk,
    },
    /// Show what happened to a model's versions, newest first
    History {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
    /// Serve a version now, until the registry wants another than it does now
    Promote {
        /// The model's name
        model: String,
        /// The version's number
        version: u64,
        #[command(flatten)]
        desk: Desk,
    },
    /// Go back to the version before, or end the trial; the version that is left is not served again by itself
    Rollback {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
    /// Serve a version until it is unpinned
    Pin {
        /// The model's name
        model: String,
        /// The version's number
        version: u64,
        #[command(flatten)]
        desk: Desk,
    },
    /// Follow the registry again
    Unpin {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
}

/// A running gateway, and who speaks to it.
#[derive(Debug, Args)]
struct Desk {
    /// The gateway's admin address; the one in the configuration if left out
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The gateway's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct Verify {
    /// A folder with an `MLmodel` file, or `models:/name/3` or `models:/name@alias` in the configured registry
    version: String,
    /// The verdict as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

fn main() -> ExitCode {
    // Every TLS client of the process is made with it; the first one to be made may be the exporter of traces.
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before main");
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(gateway) => {
            silence_runtime()?;
            app::serve(config::load(&gateway.sources())?.config)
        }
        Command::Demo(addresses) => {
            silence_runtime()?;
            // A visitor who cannot read the welcome is no reason to end the demo.
            app::demo(addresses.sources(), |text| drop(print(text)))
        }
        Command::CheckConfig(gateway) => print(&config::load(&gateway.sources())?.effective.to_string()),
        Command::Probe => run_probe(),
        Command::Keys(keys) => run_keys(keys, Clock::system().now()),
        Command::Models(models) => run_models(models),
        Command::Verify(Verify { version, json, gateway }) => {
            silence_runtime()?;
            let (text, good) = app::verify(gateway.sources_for(Purpose::Keys), &version, json)?;
            print(&text)?;
            anyhow::ensure!(good, "the version is not fit to serve");
            Ok(())
        }
        Command::Doctor(gateway) => {
            silence_runtime()?;
            let (text, good) = app::doctor(&config::load(&gateway.sources())?.config)?;
            print(&text)?;
            anyhow::ensure!(good, "something is missing; each line says what to do");
            Ok(())
        }
    }
}

/// The largest request to try a version, in bytes: settings, with names of columns and labels.
const MAX_PROBE_REQUEST: u64 = 64 << 20;

fn run_probe() -> anyhow::Result<()> {
    let mut request = String::new();
    io::stdin().take(MAX_PROBE_REQUEST).read_to_string(&mut request).context("cannot read what to try")?;
    print(&app::probe(&request))
}

/// One line for each thing that is wrong, or one line and its causes.
fn report(error: &anyhow::Error) -> ExitCode {
    let (text, code) = if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        let count = errors.mistakes().len();
        let plural = if count == 1 { "" } else { "s" };
        (format!("{errors}\nmodelgate: {count} mistake{plural} in the configuration\n"), CONFIG_ERROR)
    } else {
        let causes: Vec<String> = error.chain().skip(1).map(|cause| format!("  because {cause}\n")).collect();
        (format!("modelgate: {error}\n{}", causes.concat()), 1)
    };
    // With standard error closed there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

/// Writes to standard output, where a closed pipe is an error and not a panic.
fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// Starts the program again with `ORT_DISABLE_TELEMETRY` set, unless it is: ONNX Runtime 1.29 and newer report to
/// Microsoft without it, it must be there before the library is loaded, and a process cannot safely change its own
/// environment.
#[expect(clippy::disallowed_methods, reason = "main is where the environment is read")]
fn silence_runtime() -> anyhow::Result<()> {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    let error = process::Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, "1").exec();
    Err(error).context(format!("cannot start again with {VARIABLE} set; set it to 1 before starting"))
}

fn run_models(models: Models) -> anyhow::Result<()> {
    let (desk, command) = match models {
        Models::List { desk } => (desk, operate::Command::List),
        Models::History { model, desk } => (desk, operate::Command::History { model }),
        Models::Promote { model, version, desk } => (desk, operate::Command::Promote { model, version }),
        Models::Rollback { model, desk } => (desk, operate::Command::RollBack { model }),
        Models::Pin { model, version, desk } => (desk, operate::Command::Pin { model, version }),
        Models::Unpin { model, desk } => (desk, operate::Command::Unpin { model }),
    };
    let sources = sources(desk.config, Flags::default(), Purpose::Keys);
    let by = sources.env.iter().find(|(name, _)| name == "USER").map(|(_, user)| user.clone());
    let admin = match desk.admin {
        Some(admin) => admin,
        None => format!("http://{}", config::load(&sources)?.config.server.admin_listen),
    };
    print(&app::operate(&operate::Desk { admin, by, reason: desk.reason }, command)?)
}

impl Gateway {
    fn sources(self) -> Sources {
        self.sources_for(Purpose::Serve)
    }

    fn sources_for(self, purpose: Purpose) -> Sources {
        let Addresses { listen, admin_listen } = self.addresses;
        let flags =
            Flags { registry: self.registry, models: self.models, listen, admin_listen, data_dir: self.data_dir };
        sources(self.config, flags, purpose)
    }
}

impl Addresses {
    /// The demo's sources: no registry or model of the visitor's own environment gets into it.
    fn sources(self) -> Sources {
        let flags = Flags { listen: self.listen, admin_listen: self.admin_listen, ..Flags::default() };
        let mut sources = sources(None, flags, Purpose::Serve);
        sources
            .env
            .retain(|(name, _)| matches!(name.as_str(), "RUST_LOG" | "ORT_DYLIB_PATH") || name.starts_with("OTEL_"));
        sources
    }
}

fn sources(file: Option<PathBuf>, flags: Flags, purpose: Purpose) -> Sources {
    let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    // What is not Unicode is no value of ours, and is told as a mistake where it stands for one.
    let text = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    Sources { file, env: std::env::vars_os().map(text).collect(), flags, processors, purpose }
}

fn run_keys(keys: Keys, now: Timestamp) -> anyhow::Result<()> {
    match keys {
        Keys::Create { name, plan, expires, place } => {
            let store = place.open()?;
            create_key(&store, &name, plan.as_deref(), expires, now)
        }
        Keys::List { place } => {
            let store = place.open()?;
            print(&table(&store.keys.list()?, now))
        }
        Keys::Revoke { id, place } => {
            let revoked = place.open()?.keys.revoke(&id, now)?;
            print(&format!(
                "revoked key {} ({}); gateways on this data directory refuse it from now on\n",
                revoked.id, revoked.name
            ))
        }
    }
}

/// The key store of one data directory.
struct Store {
    keys: ApiKeys,
    plans: Vec<String>,
}

impl Place {
    fn open(self) -> anyhow::Result<Store> {
        let flags = Flags { data_dir: self.data_dir, ..Flags::default() };
        let config = config::load(&sources(self.config, flags, Purpose::Keys))?.config;
        let plans = config.auth.plans.keys().map(ToString::to_string).collect();
        Ok(Store { keys: ApiKeys::open(config.auth, &mut getrandom::fill)?, plans })
    }
}

fn create_key(
    store: &Store,
    name: &str,
    plan: Option<&str>,
    expires: Option<Span>,
    now: Timestamp,
) -> anyhow::Result<()> {
    let plan = match (plan, &store.plans[..]) {
        (Some(plan), _) => plan,
        (None, [only]) => only,
        (None, plans) => anyhow::bail!("say which plan the key is on: --plan {}", plans.join(", --plan ")),
    };
    let expires = expires.map(|lifetime| end_of(now, lifetime)).transpose()?;
    let (record, secret) = store.keys.create(name, plan, expires, now, &mut getrandom::fill)?;
    print(&format!("{}\n", secret.expose_secret()))?;
    // Beside the key, not after it, so that `key=$(modelgate keys create …)` holds the key alone.
    let note = format!("Key {} of {name} on plan {plan}. The key is not shown again: keep it now.\n", record.id);
    io::stderr().write_all(note.as_bytes()).context("cannot write to standard error")
}

/// A length of time above zero.
fn lifetime(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|_| "expected a time such as 90d or 12h".to_owned())?;
    if span.is_positive() { Ok(span) } else { Err("expected a time above zero".to_owned()) }
}

/// `lifetime` after `now`, in days of 24 hours.
fn end_of(now: Timestamp, lifetime: Span) -> anyhow::Result<Timestamp> {
    let lifetime = lifetime
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .context("a key's life is given in weeks, days or hours: months and years differ")?;
    now.checked_add(lifetime).context("no calendar reaches that far")
}

fn table(records: &[KeyRecord], now: Timestamp) -> String {
    let head = ["ID", "NAME", "PLAN", "CREATED", "EXPIRES", "STATE"].map(str::to_owned);
    let rows: Vec<[String; 6]> = [head].into_iter().chain(records.iter().map(|record| row(record, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).expect("a String takes every write");
    }
    text
}

fn row(record: &KeyRecord, now: Timestamp) -> [String; 6] {
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    let state = match (record.revoked, record.expires) {
        (Some(revoked), _) => format!("revoked {}", day(revoked)),
        (None, Some(expires)) if expires <= now => "expired".to_owned(),
        (None, _) => "active".to_owned(),
    };
    let expires = record.expires.map_or_else(|| "never".to_owned(), day);
    [record.id.to_string(), record.name.clone(), record.plan.clone(), day(record.created), expires, state]
}
