//! `modelgate keys …`: the key store of one data directory, from the command line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use modelgate::app;
use modelgate::auth::{self, ApiKeys, Keep, KeyId, KeyRecord, NewKey, Pin, PinTo, Put, Scope, Scopes};
use secrecy::ExposeSecret as _;

use super::{Place, print};

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
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
        /// What it may do: predict:MODEL, predict:*, feedback:MODEL, feedback:* or usage:read; all that the plan allows if left out
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<Scope>,
        #[command(flatten)]
        place: Place,
    },
    /// Show every key, without its secret
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Make a key in the place of another, which works on for a while
    Rotate {
        /// The old key's id, as `keys list` shows it
        id: String,
        /// How long the old key works on
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = overlap)]
        overlap: Span,
        #[command(flatten)]
        place: Place,
    },
    /// Switch a key off until it is enabled; gateways notice within a second, those that share keys within five
    Disable {
        /// The key's id, as `keys list` shows it
        id: String,
        #[command(flatten)]
        place: Place,
    },
    /// Switch a disabled key on again
    Enable {
        /// The key's id, as `keys list` shows it
        id: String,
        #[command(flatten)]
        place: Place,
    },
    /// Say anew when a key stops working
    Expire {
        /// The key's id, as `keys list` shows it
        id: String,
        /// How long it works from now on, such as 90d or 0s; or `never`
        #[arg(value_name = "TIME", value_parser = end)]
        end: End,
        #[command(flatten)]
        place: Place,
    },
    /// Say anew what a key may do
    Scope {
        /// The key's id, as `keys list` shows it
        id: String,
        /// predict:MODEL, predict:*, feedback:MODEL, feedback:* or usage:read; or say --all
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        scopes: Vec<Scope>,
        /// All that the plan allows
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Let a key stay on a version of a model until a date, while others move on
    Pin {
        /// The key's id, as `keys list` shows it
        id: String,
        /// The model's name
        model: String,
        /// A version's number, or @ALIAS for whatever that alias points at
        #[arg(value_name = "VERSION|@ALIAS", value_parser = pin_to)]
        version: PinTo,
        /// From the beginning of this day (UTC) it goes the way of all; or a moment such as 2027-01-31T12:00:00Z
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = until)]
        until: Timestamp,
        #[command(flatten)]
        place: Place,
    },
    /// Let a key go the way of all again
    Unpin {
        /// The key's id, as `keys list` shows it
        id: String,
        /// The model's name
        model: String,
        #[command(flatten)]
        place: Place,
    },
    /// End a key; gateways notice within a second, those that share keys within five
    Revoke {
        /// The key's id, as `keys list` shows it
        id: String,
        #[command(flatten)]
        place: Place,
    },
    /// Take over API Gateway's keys, which go on working as they are sent
    Import {
        /// API Gateway's CSV, as its own import takes it
        file: PathBuf,
        /// The plan of keys on no usage plan that stands for one of ours
        #[arg(long)]
        plan: Option<String>,
        /// Our plan for one of API Gateway's; may be given more than once
        #[arg(long = "usage-plan", value_name = "ID=PLAN", value_parser = pair)]
        usage_plans: Vec<(String, String)>,
        #[command(flatten)]
        place: Place,
    },
    /// Put the keys of this data directory into the store that gateways share, beside those that are there
    Share {
        /// Which are right where keys here and in the store differ
        #[arg(long, value_name = "here|store", value_parser = keep)]
        keep: Option<Keep>,
        #[command(flatten)]
        place: Place,
    },
    /// Say whether a text is one of our keys by its form, asking no store
    Check {
        /// The text; `-` reads it from standard input, where no list of processes shows it
        text: String,
    },
}

/// When a key is to stop working.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Never,
    After(Span),
}

/// The key store of one data directory, and what its gateway is configured with.
struct Store {
    keys: ApiKeys,
    plans: Vec<String>,
    models: Vec<String>,
    max_held: usize,
    /// Whether other data directories have the same keys.
    are_shared: bool,
}

impl Place {
    fn open(self) -> anyhow::Result<Store> {
        let config = self.load()?;
        let are_shared = config.shared_keys.is_some();
        let plans = config.auth.plans.keys().map(ToString::to_string).collect();
        let models = config.manager.models.iter().map(|model| model.name.to_string()).collect();
        let keys = app::keys::open(config.auth, config.shared_keys.as_ref())?.with_pins(config.pins);
        Ok(Store { keys, plans, models, max_held: config.manager.max_held, are_shared })
    }
}

impl Keys {
    pub(super) fn run(self, now: Timestamp) -> anyhow::Result<()> {
        match self {
            Self::Create { name, plan, expires, scopes, place } => {
                let store = place.open()?;
                let plan = store.plan(plan)?;
                let expires = expires.map(|lifetime| after(now, lifetime)).transpose()?;
                store.create(NewKey { name, plan, expires, scopes: Scopes::of(scopes) }, now)
            }
            Self::List { place } => {
                let keys = place.open()?.keys;
                // Better the copy than nothing; it says how old it is.
                if let Err(error) = keys.sync_once(now) {
                    note(&format!("note: {}", keys.age_of_copy(&error)))?;
                }
                print(&table(&keys.list()?, &keys.key_pins()?, now))
            }
            Self::Rotate { id, overlap, place } => rotate(&place.open()?.keys, &id, overlap, now),
            Self::Disable { id, place } => {
                let key = place.open()?.keys.disable(&id, now)?;
                print(&format!("disabled key {} ({}); `keys enable {0}` switches it on again\n", key.id, key.name))
            }
            Self::Enable { id, place } => {
                let key = place.open()?.keys.enable(&id)?;
                print(&format!("enabled key {} ({})\n", key.id, key.name))
            }
            Self::Expire { id, end, place } => {
                let end = match end {
                    End::Never => None,
                    End::After(length) => Some(after(now, length)?),
                };
                let key = place.open()?.keys.expire(&id, end)?;
                print(&format!("key {} ({}) expires: {}\n", key.id, key.name, expiry(&key)))
            }
            Self::Scope { id, scopes, all: _, place } => {
                let store = place.open()?;
                store.warn_of_unknown_models(&scopes)?;
                let key = store.keys.set_scopes(&id, Scopes::of(scopes))?;
                print(&format!("key {} ({}) may do: {}\n", key.id, key.name, scopes_text(&key.scopes)))
            }
            Self::Pin { id, model, version, until, place } => {
                let store = place.open()?;
                store.check_model(&model)?;
                let pin = Pin { model: model.into(), to: version, until };
                let key = store.keys.pin(&id, &pin, store.max_held, now)?;
                print(&format!("key {} ({}) stays on {} until {until}\n", key.id, key.name, pinned(&pin)))
            }
            Self::Unpin { id, model, place } => {
                let key = place.open()?.keys.unpin(&id, &model)?;
                print(&format!("key {} ({}) goes the way of all callers of {model} again\n", key.id, key.name))
            }
            Self::Revoke { id, place } => {
                let store = place.open()?;
                let key = store.keys.revoke(&id, now)?;
                let who = if store.are_shared {
                    "every gateway that can ask the shared store refuses it within 5 seconds"
                } else {
                    "a gateway on this data directory refuses it within a second"
                };
                print(&format!("revoked key {} ({}); {who}\n", key.id, key.name))
            }
            Self::Import { file, plan, usage_plans, place } => {
                let csv = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
                let plans = auth::Plans { by_usage_plan: usage_plans.into_iter().collect(), otherwise: plan };
                let imported = place.open()?.keys.import(&csv, &plans, now, &mut getrandom::fill)?;
                print(&format!("keys imported: {}, updated: {}\n", imported.created, imported.updated))
            }
            Self::Share { keep, place } => {
                let store = place.open()?;
                anyhow::ensure!(store.are_shared, "keys are not shared here: write `shared = true` below [keys]");
                print(&shared(store.keys.share(keep)?))
            }
            Self::Check { text } => check(text),
        }
    }
}

impl Store {
    /// Where models are written, it must be one of them; where none is, they are given when the gateway starts.
    fn check_model(&self, model: &str) -> anyhow::Result<()> {
        let known = self.models.is_empty() || self.models.iter().any(|known| known == model);
        anyhow::ensure!(known, "there is no model `{model}`; configured are: {}", self.models.join(", "));
        Ok(())
    }

    /// The plan that was asked for, or the only one.
    fn plan(&self, asked: Option<String>) -> anyhow::Result<String> {
        match (asked, &self.plans[..]) {
            (Some(plan), _) => Ok(plan),
            (None, [only]) => Ok(only.clone()),
            (None, plans) => anyhow::bail!("say which plan the key is on: --plan {}", plans.join(", --plan ")),
        }
    }

    /// Tells of scopes for models that no gateway here has: more often a slip than a plan.
    fn warn_of_unknown_models(&self, scopes: &[Scope]) -> anyhow::Result<()> {
        for scope in scopes {
            if let Scope::Predict(Some(model)) = scope
                && !self.models.iter().any(|known| **known == **model)
            {
                note(&format!("note: no model `{model}` is configured here"))?;
            }
        }
        Ok(())
    }

    fn create(&self, new: NewKey, now: Timestamp) -> anyhow::Result<()> {
        if let Scopes::Only(scopes) = &new.scopes {
            self.warn_of_unknown_models(scopes)?;
        }
        let (record, secret) = self.keys.issue(new, now, &mut getrandom::fill)?;
        show(secret.expose_secret(), &format!("Key {} of {} on plan {}.", record.id, record.name, record.plan))
    }
}

fn shared(put: Put) -> String {
    match put {
        Put::Nothing { keys } => format!("nothing to do: the keys here, {keys}, are those in the shared store\n"),
        Put::Together { keys, there, unreadable: 0 } => {
            format!("keys shared: {keys}, in the store before: {there}\n")
        }
        Put::Together { keys, there, unreadable } => format!(
            "keys shared: {keys}, in the store before: {there}; records there that nobody could read are gone: \
             {unreadable}\n"
        ),
    }
}

fn keep(text: &str) -> Result<Keep, String> {
    match text {
        "here" => Ok(Keep::Here),
        "store" => Ok(Keep::Store),
        _ => Err("expected `here` or `store`".to_owned()),
    }
}

fn rotate(keys: &ApiKeys, id: &str, overlap: Span, now: Timestamp) -> anyhow::Result<()> {
    let overlap = after(now, overlap)?.duration_since(now);
    let (old, new, secret) = keys.rotate(id, overlap, now, &mut getrandom::fill)?;
    let note =
        format!("Key {} of {} in the place of {}, which works until {}.", new.id, new.name, old.id, expiry(&old));
    show(secret.expose_secret(), &note)
}

/// Prints a key. What is said of it goes beside it, not after it, so that `key=$(modelgate keys create …)` holds the key
/// alone.
fn show(secret: &str, about: &str) -> anyhow::Result<()> {
    print(&format!("{secret}\n"))?;
    note(&format!("{about} The key is not shown again: keep it now."))
}

/// Says something to people that is not what was asked for.
fn note(text: &str) -> anyhow::Result<()> {
    writeln!(io::stderr(), "{text}").context("cannot write to standard error")
}

fn check(text: String) -> anyhow::Result<()> {
    let text = if text == "-" { read_line()? } else { text };
    match auth::well_formed_id(text.trim()) {
        Some(id) => print(&format!("a well-formed key with the id {id}; `keys list` says whether it is live\n")),
        None => anyhow::bail!("this is no key of modelgate's: its prefix, length or checksum is wrong"),
    }
}

/// Standard input, as far as a key and a line's end can go.
fn read_line() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().take(4096).read_to_string(&mut text).context("cannot read standard input")?;
    Ok(text)
}

/// A length of time above zero.
fn lifetime(text: &str) -> Result<Span, String> {
    let span = time(text)?;
    if span.is_positive() { Ok(span) } else { Err("expected a time above zero".to_owned()) }
}

/// A length of time, or for ever.
fn end(text: &str) -> Result<End, String> {
    if text == "never" { Ok(End::Never) } else { overlap(text).map(End::After) }
}

/// A length of time, or none.
fn overlap(text: &str) -> Result<Span, String> {
    let span = time(text)?;
    if span.is_negative() { Err("expected a time of zero or more".to_owned()) } else { Ok(span) }
}

fn time(text: &str) -> Result<Span, String> {
    text.parse().map_err(|_| "expected a time such as 90d or 12h".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (id, plan) = text.split_once('=').ok_or_else(|| "expected ID=PLAN".to_owned())?;
    Ok((id.to_owned(), plan.to_owned()))
}

/// `span` after `now`, in days of 24 hours.
fn after(now: Timestamp, span: Span) -> anyhow::Result<Timestamp> {
    let length: SignedDuration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| anyhow::anyhow!("a time is given in weeks, days or hours: months and years differ in length"))?;
    now.checked_add(length).context("no calendar reaches that far")
}

const COLUMNS: usize = 8;

/// Every key on a line. Names come last: who may use any letters may use some that are as wide as two.
fn table(records: &[KeyRecord], pins: &BTreeMap<KeyId, Vec<Pin>>, now: Timestamp) -> String {
    let head = ["ID", "PLAN", "SCOPES", "PINS", "CREATED", "EXPIRES", "STATE", "NAME"].map(str::to_owned);
    let of = |record: &KeyRecord| pins.get(&record.account).map_or_else(String::new, |pins| pins_text(pins, now));
    let rows = records.iter().map(|record| row(record, of(record), now));
    let rows: Vec<[String; COLUMNS]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).expect("a String takes every write");
    }
    text
}

fn row(record: &KeyRecord, pins: String, now: Timestamp) -> [String; COLUMNS] {
    [
        record.id.to_string(),
        record.plan.clone(),
        scopes_text(&record.scopes),
        if pins.is_empty() { "none".to_owned() } else { pins },
        day(record.created),
        expiry(record),
        state(record, now),
        record.name.clone(),
    ]
}

fn state(record: &KeyRecord, now: Timestamp) -> String {
    let state = match (record.revoked, record.expires, record.disabled) {
        (Some(revoked), ..) => format!("revoked {}", day(revoked)),
        (None, Some(expires), _) if expires <= now => "expired".to_owned(),
        (None, _, Some(disabled)) => format!("disabled {}", day(disabled)),
        (None, _, None) => "active".to_owned(),
    };
    match &record.replaced_by {
        Some(by) => format!("{state}, replaced by {by}"),
        None => state,
    }
}

/// What a key stays on, without what is over.
fn pins_text(pins: &[Pin], now: Timestamp) -> String {
    let live = pins.iter().filter(|pin| now < pin.until);
    live.map(|pin| format!("{} until {}", pinned(pin), day(pin.until))).collect::<Vec<_>>().join(", ")
}

fn pinned(Pin { model, to, .. }: &Pin) -> String {
    match to {
        PinTo::Version(version) => format!("{model}/{version}"),
        PinTo::Alias(alias) => format!("{model}@{alias}"),
    }
}

fn pin_to(text: &str) -> Result<PinTo, String> {
    let written = match text.strip_prefix('@') {
        Some(alias) => format!("alias:{alias}"),
        None => format!("version:{text}"),
    };
    written.parse().map_err(|_| "expected a version's number such as 3, or an alias such as @stable".to_owned())
}

fn until(text: &str) -> Result<Timestamp, String> {
    auth::moment(text)
        .ok_or_else(|| "expected a day such as 2027-01-31, or a moment such as 2027-01-31T12:00:00Z".to_owned())
}

fn scopes_text(scopes: &Scopes) -> String {
    if *scopes == Scopes::All { "all".to_owned() } else { scopes.to_string() }
}

fn expiry(record: &KeyRecord) -> String {
    record.expires.map_or_else(|| "never".to_owned(), |end| end.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}
