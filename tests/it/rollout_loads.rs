//! A version that takes long to load holds up nobody: not the other models, not an operator, and not the last word of one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::json;

use crate::support::site::{Gate, Site, eventually};

/// Two models; a version of `slow` is tried for as long as the file `block` is there.
struct Slow {
    site: Site,
    block: PathBuf,
    begun: PathBuf,
}

impl Slow {
    fn new() -> Self {
        let mut site = Site::new(
            "[plans.open]\n[[model]]\nname = \"slow\"\nselect = \"alias:champion\"\n[model.features]\n\
             rename = { marker = \"a\" }\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n",
        );
        let (block, begun) = (site.folder().join("block"), site.folder().join("begun"));
        let program = site.folder().join("program");
        // What is tried tells itself by the rename in its settings.
        let text = format!(
            "#!/bin/sh\nasked=$(cat)\ncase \"$asked\" in *marker*)\n  if [ -e {block} ]; then touch {begun}; fi\n  \
             while [ -e {block} ]; do sleep 0.02; done ;;\nesac\nprintf %s \"$asked\" | {real} probe\n",
            block = block.display(),
            begun = begun.display(),
            real = env!("CARGO_BIN_EXE_modelgate"),
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        site.set_probe_program(program);
        Self { site, block, begun }
    }

    /// Serves versions 1 and then 2 of both, and has version 3 of `slow` be tried, without end.
    async fn start(&mut self) -> Gate {
        for model in ["slow", "sum"] {
            for version in [1_u16, 2, 3] {
                self.site.register_sum(model, version.into(), f32::from(version) * 1000.0);
            }
            self.site.promote(model, 1);
        }
        let gate = self.site.start("open").await;
        for model in ["slow", "sum"] {
            gate.serves(model, 1).await;
            self.site.promote(model, 2);
            gate.serves(model, 2).await;
        }
        fs::write(&self.block, "").unwrap();
        self.site.promote("slow", 3);
        eventually("a version that is tried", async || self.begun.exists()).await;
        gate
    }

    fn release(&self) {
        fs::remove_file(&self.block).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_model_loads_the_others_move_on_and_orders_are_followed() {
    let mut slow = Slow::new();
    let gate = slow.start().await;
    slow.site.promote("sum", 3);
    gate.serves("sum", 3).await;
    assert_eq!(gate.order("sum", "rollback", json!({})).await.body["version"], "2");
    assert_eq!(gate.order("sum", "promote", json!({ "version": "1" })).await.body["version"], "1");
    // Of the model that loads, too.
    assert_eq!(gate.order("slow", "rollback", json!({})).await.body["version"], "1");
    assert_eq!(gate.status("slow").await["quarantined"], json!(["2"]));
    // The answer to one that has to wait comes when the version before it is done with.
    assert!(slow.block.exists());
    let wish = gate.order("slow", "promote", json!({ "version": "3" }));
    let (wish, ()) = tokio::join!(wish, async { slow.release() });
    assert_eq!((wish.status, &wish.body["version"]), (200, &json!("3")), "{}", wish.body);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_chose_during_a_load_is_not_undone_by_its_end() {
    let mut slow = Slow::new();
    let gate = slow.start().await;
    assert_eq!(gate.order("slow", "pin", json!({ "version": "1" })).await.status, 200);
    slow.release();
    gate.says("slow", "a verdict on version 3", |status| status["verdict"]["version"] == "3").await;
    let status = gate.status("slow").await;
    assert_eq!((&status["version"], &status["pinned"]), (&json!("1"), &json!("1")), "{status}");
    let served: Vec<_> = gate.history("slow").await.into_iter().filter(|(event, _)| event == "served").collect();
    assert_eq!(served.len(), 3, "1, 2 and 1 again: {served:?}");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_keeps_what_is_loaded_and_a_few_more() {
    let mut site = Site::new("[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n");
    for version in 1..=8_u16 {
        site.register_sum("sum", version.into(), f32::from(version) * 1000.0);
    }
    site.promote("sum", 1);
    let gate = site.start("open").await;
    for version in 1..=8 {
        site.promote("sum", version);
        gate.serves("sum", version).await;
    }
    let kept = || fs::read_dir(site.folder().join("data/cache/sha256")).unwrap().count();
    eventually("old versions to leave the disk", async || kept() == 2 + 3).await;
}
