//! `standfast watch` with the tools of LVM and ZFS. There is no device mapper and no ZFS here: programs stand in for
//! the tools, which take the same arguments, print the same reports and keep a model of volume group, volumes, pool
//! and datasets in a directory.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Script, Setup, disk, error, event, threshold};
use serde_json::{Value, json};
use testkit::LoopDevice;
use testkit::place::{PATIENCE, eventually};

const MIB: u64 = 1 << 20;

/// `lvs`: what `lv.NAME` (size), `thin.NAME` (pool) and `pool.NAME` (size, used, and the same of metadata) say.
const LVS: &str = r#"
m=@PLACE@/model
for target; do :; done
echo "lvs $*" >>$m/calls
case $target in
/*) name=$(cat $m/at$(echo $target | tr / _)) || exit 5 ;;
*) name=${target#*/} ;;
esac
share() { printf '%d.%02d' $(($1 * 100 / $2)) $(($1 * 10000 / $2 % 100)); }
pool= data= meta= metasize=
if [ -e $m/pool.$name ]; then
    type=thin-pool
    read size used metasize metaused <$m/pool.$name
    data=$(share $used $size) meta=$(share $metaused $metasize)
elif [ -e $m/thin.$name ]; then
    type=thin size=1073741824 data=1.00
    read pool <$m/thin.$name
else
    type=linear
    read size <$m/lv.$name || exit 5
fi
cat <<END
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "lv_name":"$name", "segtype":"$type", "lv_size":"$size", "pool_lv":"$pool", "data_percent":"$data", "metadata_percent":"$meta", "lv_metadata_size":"$metasize", "vg_free":"$(cat $m/free)", "vg_extent_size":"4194304", "vg_lock_type":"$(cat $m/lock)"}
              ]
          }
      ]
  }
END
"#;

/// `lvextend`: takes it from what is free, and makes the loop device of a volume that has one larger.
const LVEXTEND: &str = r#"
m=@PLACE@/model
echo "lvextend $*" >>$m/calls
[ -e $m/lies ] && exit 0
[ $# = 4 ] && [ $1 = --yes ] || exit 3
by=${3#+} by=${by%b} name=${4#*/}
[ $((by % 512)) = 0 ] || { echo "  Size is not a multiple of 512." >&2; exit 3; }
free=$(($(cat $m/free) - by))
[ $free -ge 0 ] || { echo "  Insufficient free space" >&2; exit 5; }
echo $free >$m/free
case $2 in
--size)
    if [ -e $m/pool.$name ]; then
        read size rest <$m/pool.$name
        echo $((size + by)) $rest >$m/pool.$name
    else
        size=$(($(cat $m/lv.$name) + by))
        echo $size >$m/lv.$name
        truncate -s $size $m/file.$name && losetup -c $(cat $m/device.$name)
    fi ;;
--poolmetadatasize)
    read size used metasize rest <$m/pool.$name
    echo $size $used $((metasize + by)) $rest >$m/pool.$name ;;
*) exit 3 ;;
esac
echo "  Logical volume $4 successfully resized."
"#;

/// `zfs`: the properties of a dataset are files.
const ZFS: &str = r#"
m=@PLACE@/model
echo "zfs $*" >>$m/calls
case $1 in
get)
    for target; do :; done
    case $target in
    tank) cat $m/pool-available; exit ;;
    /*) name=tank/images ;;
    *) name=$target ;;
    esac
    for property in $(echo $5 | tr , ' '); do
        value=-
        [ -e $m/$property ] && value=$(cat $m/$property)
        printf '%s\t%s\t%s\n' $name $property $value
    done ;;
set)
    [ -e $m/lies ] && exit 0
    property=${2%=*} value=${2#*=}
    by=$((value - $(cat $m/$property)))
    echo $value >$m/$property
    [ -e $m/available ] && echo $(($(cat $m/available) + by)) >$m/available
    if [ $property = volsize ]; then
        truncate -s $value $m/file && losetup -c $(cat $m/device)
    fi ;;
esac
"#;

struct Model<'a>(&'a Setup);

impl Model<'_> {
    fn set(&self, name: &str, value: impl std::fmt::Display) {
        std::fs::write(
            self.0.place.file(&format!("model/{name}")),
            format!("{value}\n"),
        )
        .unwrap();
    }

    fn get(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.0.place.file(&format!("model/{name}")));
        text.unwrap_or_default().trim().to_owned()
    }

    /// What changed something.
    fn changes(&self) -> Vec<String> {
        let calls = self.get("calls");
        let changes = calls
            .lines()
            .filter(|call| call.starts_with("lvextend ") || call.starts_with("zfs set "));
        changes.map(str::to_owned).collect()
    }

    fn file(&self, name: &str, bytes: u64) -> LoopDevice {
        let path = self.0.place.file(&format!("model/{name}"));
        std::fs::File::create(&path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        LoopDevice::new(&path, false).unwrap()
    }
}

fn setup(keys: &str) -> Setup {
    let setup = Setup::new(&format!(
        "[[machines]]\nsockets = [\"@PLACE@/*.qmp\"]\ntools = \"@PLACE@/model\"\nbackoff-first = \"100ms\"\nbackoff-max = \"200ms\"\n{keys}"
    ));
    std::fs::create_dir(setup.place.file("model")).unwrap();
    for (name, text) in [("lvs", LVS), ("lvextend", LVEXTEND), ("zfs", ZFS)] {
        let text = text.replace("@PLACE@", &setup.place.path().display().to_string());
        setup.script(&format!("model/{name}"), &text);
    }
    setup
}

/// A machine with a format on that path.
fn qcow2(setup: &Setup, path: &Path) -> Script {
    let mut block = disk(path, 1 << 40);
    block[0]["inserted"]["drv"] = json!("qcow2");
    let script = Script::start(setup.place.file("vm.qmp"), block);
    script.state.lock().unwrap().stats = json!([{"device": "vda", "qdev": "vda", "node-name": "disk0",
        "stats": {"wr_highest_offset": 0, "wr_bytes": 0},
        "parent": {"node-name": "host0", "stats": {"wr_highest_offset": 0}}}]);
    script
}

fn results(setup: &Setup) -> Vec<String> {
    let records = setup.records().into_iter();
    let results = records.filter(|record| record["event"] == "extension");
    results
        .map(|record| record["result"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_format_on_a_logical_volume() {
    let setup =
        setup("strategy = \"lvm\"\nstep = \"9M\"\nhead-room-min = \"2M\"\nreserve = \"8M\"\n");
    let model = Model(&setup);
    let device = model.file("file.vm1", 16 * MIB);
    let path = device.path().display().to_string();
    model.set(&format!("at{}", path.replace('/', "_")), "vm1");
    model.set("device.vm1", &path);
    model.set("lv.vm1", 16 * MIB);
    model.set("free", 40 * MIB);
    model.set("lock", "");
    let script = qcow2(&setup, device.path());
    let mut watcher = setup.watch(1);
    // Before it is full; but another host may change the volume group, too.
    eventually("it is armed", || armed(&script).len() == 1);
    assert_eq!(
        armed(&script)[0],
        json!({"node-name": "host0", "write-threshold": 7 * MIB})
    );
    script.send(format!("{}\n", threshold("host0", 7 * MIB, 8 * MIB)).as_bytes());
    eventually("it is refused", || {
        results(&setup).contains(&"refused".to_owned())
    });
    assert_eq!(model.changes(), [""; 0]);
    let detail = |says: &str| {
        let records = setup.records();
        let found = records
            .iter()
            .any(|record| record["detail"].to_string().contains(says));
        assert!(found, "{records:?}");
    };
    detail("sole-writer");
    assert!(watcher.terminate(PATIENCE).unwrap().success());

    // It is the only one.
    let config = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), format!("{config}sole-writer = true\n")).unwrap();
    let mut watcher = setup.watch(1);
    eventually("it is armed again", || armed(&script).len() >= 2);
    script.send(format!("{}\n", threshold("host0", 7 * MIB, 8 * MIB)).as_bytes());
    eventually("it is extended", || {
        results(&setup).last().unwrap() == "grown"
    });
    // Whole extents, and no more than configured.
    assert_eq!(model.changes(), ["lvextend --yes --size +8388608b vg/vm1"]);
    assert_eq!(model.get("lv.vm1"), (24 * MIB).to_string());
    assert!(script.conts().is_empty());
    // It runs full, and a tool says that it has done what it has not.
    model.set("lies", "");
    script.fail(Duration::ZERO);
    eventually("it has failed", || {
        results(&setup).last().unwrap() == "failed"
    });
    detail("it has not grown");
    assert!(script.conts().is_empty());
    std::fs::remove_file(setup.place.file("model/lies")).unwrap();
    eventually("it goes on", || script.conts().len() == 1);
    assert_eq!(model.get("lv.vm1"), (32 * MIB).to_string());
    // What is left is the reserve, and less than a step above it.
    assert_eq!(model.get("free"), (24 * MIB).to_string());
    assert!(
        model.changes().iter().all(|call| !call.contains(" -r")),
        "{:?}",
        model.changes()
    );
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// The arguments of each `block-set-write-threshold`.
fn armed(script: &Script) -> Vec<Value> {
    let state = script.state.lock().unwrap();
    state.thresholds.clone()
}

/// A thin volume shares its pool: that is extended, and its metadata first, when too little of that is left.
#[test]
fn a_pool_of_thin_volumes() {
    let setup = setup(
        "strategy = \"lvm\"\nstep = \"64M\"\nhead-room-min = \"32M\"\nhead-room-max = \"32M\"\npoll = \"1s\"\n",
    );
    let model = Model(&setup);
    model.set("at_dev_vg_thin1", "thin1");
    model.set("thin.thin1", "pool");
    model.set(
        "pool.pool",
        format!("{} {} {} {}", 128 * MIB, 0, 8 * MIB, MIB),
    );
    model.set("free", 1024 * MIB);
    model.set("lock", "sanlock");
    let script = qcow2(&setup, Path::new("/dev/vg/thin1"));
    let mut watcher = setup.watch(1);
    eventually("it is armed", || !armed(&script).is_empty());
    assert_eq!(armed(&script)[0]["write-threshold"], 1);
    // The guest writes, and the pool fills, while somebody looks.
    model.set(
        "pool.pool",
        format!("{} {} {} {}", 128 * MIB, 50 * MIB, 8 * MIB, MIB),
    );
    script.send(format!("{}\n", threshold("host0", 1, 512)).as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    model.set(
        "pool.pool",
        format!("{} {} {} {}", 128 * MIB, 100 * MIB, 8 * MIB, MIB),
    );
    eventually("it is extended", || {
        results(&setup).contains(&"grown".to_owned())
    });
    let changes = model.changes();
    assert!(
        changes[0].starts_with("lvextend --yes --size +") && changes[0].ends_with(" vg/pool"),
        "{changes:?}"
    );
    // Much data is free, little metadata.
    let pool = model.get("pool.pool");
    let size = pool.split(' ').next().unwrap().to_owned();
    std::thread::sleep(Duration::from_millis(1500));
    model.set("pool.pool", format!("{size} 0 {} {}", 8 * MIB, 7 * MIB));
    script.send(format!("{}\n", threshold("host0", 1, 512)).as_bytes());
    eventually("its metadata is extended", || {
        model
            .changes()
            .last()
            .unwrap()
            .contains("--poolmetadatasize")
    });
    assert_eq!(
        model.changes().last().unwrap(),
        "lvextend --yes --poolmetadatasize +4194304b vg/pool"
    );
    assert!(script.conts().is_empty());
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// ZFS says EDQUOT, which QEMU takes for a failure: reason and figures together say that it is no space.
#[test]
fn a_quota_of_zfs() {
    let setup = setup(
        "strategy = \"zfs\"\nzfs-property = \"refquota\"\nstep = \"64M\"\nearly = false\ngive-up-after = 3\n",
    );
    let model = Model(&setup);
    let set = |referenced: u64| {
        model.set("refquota", 256 * MIB);
        model.set("quota", 0);
        model.set("used", referenced);
        model.set("referenced", referenced);
        model.set("available", 256 * MIB - referenced);
    };
    set(100 * MIB);
    model.set("pool-available", 1024 * MIB);
    let script = qcow2(&setup, Path::new("/tank/images/vm.qcow2"));
    let mut watcher = setup.watch(1);
    let fail = || {
        let mut error = error("stop");
        error["data"]["nospace"] = json!(false);
        error["data"]["reason"] = json!("Disk quota exceeded");
        script.send(format!("{error}\n").as_bytes());
        script.state.lock().unwrap().status = "io-error";
        script.send(format!("{}\n", event("STOP")).as_bytes());
    };
    // The figures say something else.
    fail();
    eventually("it is left", || {
        let records = setup.records();
        records
            .iter()
            .any(|record| record["decision"] == "treat as failed")
            && records.iter().any(|record| record["decision"] == "leave")
    });
    assert_eq!((model.changes().len(), script.conts().len()), (0, 0));
    // Somebody continues it, and now it is at its end.
    script.state.lock().unwrap().status = "running";
    script.send(format!("{}\n", event("RESUME")).as_bytes());
    set(256 * MIB);
    fail();
    eventually("it goes on", || script.conts().len() == 1);
    assert_eq!(model.changes(), ["zfs set refquota=335544320 tank/images"]);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

#[test]
fn a_volume_of_zfs() {
    let setup = setup("strategy = \"zfs\"\nzfs-property = \"volsize\"\ndataset = \"tank/vm1\"\nstep = \"10000000\"\nhead-room-min = \"2M\"\n".replace("\"10000000\"", "10000000").as_str());
    let model = Model(&setup);
    let device = model.file("file", 16 * MIB);
    model.set("device", device.path().display());
    model.set("volsize", 16 * MIB);
    model.set("volblocksize", 16 << 10);
    model.set("pool-available", 1024 * MIB);
    let script = qcow2(&setup, device.path());
    let mut watcher = setup.watch(1);
    eventually("it is armed", || !armed(&script).is_empty());
    script.send(format!("{}\n", threshold("host0", 7 * MIB, 8 * MIB)).as_bytes());
    eventually("it is extended", || {
        results(&setup).contains(&"grown".to_owned())
    });
    // A multiple of its blocks.
    let to = 16 * MIB + 10_000_000 / (16 << 10) * (16 << 10);
    assert_eq!(model.changes(), [format!("zfs set volsize={to} tank/vm1")]);
    eventually("it is armed further on", || armed(&script).len() > 1);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}
