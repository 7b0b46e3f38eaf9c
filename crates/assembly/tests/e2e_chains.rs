//! Backing chains: opened as they are defined or as their images say, shared, refused, changed while they are used.
//!
//! Needs qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use block::fault::{InjectError, IoType};
    use frontend::Request;
    use serde_json::{Value, json};
    use testkit::place::PATIENCE;
    use testkit::qcow2_image::run;

    use super::common::{BLOCKS, House};

    const DISK: u64 = BLOCKS as u64 * 4096;

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// An image in `house`, which names its backing file as told.
    fn overlay(house: &House, name: &str, backing: &str, format: &str) {
        let (path, length) = (house.path(name), DISK.to_string());
        let arguments = [
            "create",
            "-quf",
            "qcow2",
            "-F",
            format,
            "-b",
            backing,
            text(&path),
            &length,
        ];
        run("qemu-img", &arguments).unwrap();
    }

    /// Takes the format of the backing file out of a header: QEMU's tools make no such image any more.
    fn forget_format(house: &House, name: &str) {
        let path = house.path(name);
        let mut image = fs::read(&path).unwrap();
        let kind = 0xe279_2aca_u32.to_be_bytes();
        let at = image.windows(4).position(|window| window == kind).unwrap();
        image[at..at + 4].copy_from_slice(&[0x11; 4]);
        fs::write(&path, image).unwrap();
    }

    fn file(house: &House, name: &str) -> Value {
        json!({ "driver": "file", "filename": house.path(name) })
    }

    fn qcow2(house: &House, node: &str, image: &str) -> Value {
        json!({ "driver": "qcow2", "node-name": node, "file": file(house, image) })
    }

    fn with(mut options: Value, member: &str, value: Value) -> Value {
        options[member] = value;
        options
    }

    /// Names of all nodes, generated ones without their numbers.
    fn names(house: &House) -> Vec<String> {
        let nodes = house.registry.nodes();
        let name = |name: &str| match name.strip_prefix("#block") {
            Some(_) => "#".to_owned(),
            None => name.to_owned(),
        };
        nodes.iter().map(|node| name(node.name())).collect()
    }

    /// `base.img` (raw), `mid` and `top`, with something of its own in each.
    fn chain() -> House {
        let house = House::new();
        fs::create_dir(house.path("bases")).unwrap();
        let base = house.path("bases/base.img");
        fs::write(&base, vec![1; 3 << 19]).unwrap();
        overlay(&house, "mid", "bases/base.img", "raw");
        overlay(&house, "top", "mid", "qcow2");
        for (image, pattern, at) in [("mid", 2, "512k"), ("top", 3, "1M")] {
            let write = format!("write -q -P {pattern} {at} 64k");
            run(
                "qemu-io",
                &["-fqcow2", "-c", &write, text(&house.path(image))],
            )
            .unwrap();
        }
        house
    }

    /// In the base, in the middle, at the top, behind the end of the base, which is shorter.
    const PLACES: [u64; 4] = [0, 512 << 10, 1 << 20, 2 << 20];

    #[test]
    fn a_chain_is_opened_as_its_images_say() {
        let house = chain();
        house.node(&qcow2(&house, "top", "top")).unwrap();
        assert_eq!(names(&house), ["#", "top", "#", "#", "#", "#"]);
        let top = house.registry.node("top").unwrap();
        let chain: Vec<_> = top.chain().collect();
        let drivers: Vec<_> = chain.iter().map(|node| node.driver().name()).collect();
        assert_eq!(drivers, ["qcow2", "qcow2", "raw"]);
        let read_only: Vec<_> = chain.iter().map(|node| node.read_only()).collect();
        assert_eq!(read_only, [false, true, true]);
        assert!(chain[2].storage().read_only());
        let base = chain[2].driver().info().filename;
        assert_eq!(base, text(&house.path("bases/base.img")));
        assert_eq!(top.driver().info().filename, text(&house.path("top")));
        house.export("vda", "top", true).unwrap();
        assert_eq!(house.look("vda", &PLACES), [1, 2, 3, 0]);
        // Somebody else may read what is behind the top, and not write it.
        let mid = house.path("mid");
        let other = |command| run("qemu-io", &["-fqcow2", "-c", command, text(&mid)]);
        other("write -q 0 512").unwrap_err();
        run("qemu-io", &["-rfqcow2", "-c", "read -q 0 512", text(&mid)]).unwrap();
        house.delete_export("vda", true).unwrap();
        drop((top, chain));
        house.delete_node("top").unwrap();
        assert_eq!(names(&house), [""; 0], "what the images named goes along");
        other("write -q 0 512").unwrap();
        house.close();
    }

    #[test]
    fn a_chain_is_opened_as_it_is_defined() {
        let house = chain();
        house.file("top-file", "top").unwrap();
        house.file("mid-file", "mid").unwrap();
        let base = json!({ "driver": "raw", "node-name": "base", "read-only": true,
            "file": file(&house, "bases/base.img") });
        house.node(&base).unwrap();
        let mid = json!({ "driver": "qcow2", "node-name": "mid", "read-only": true, "file": "mid-file",
            "backing": "base" });
        house.node(&mid).unwrap();
        let top = |backing: Value| json!({ "driver": "qcow2", "node-name": "top", "file": "top-file", "backing": backing });
        for (backing, seen, nodes) in [
            (json!("mid"), [1, 2, 3, 0], 5),
            (json!("base"), [1, 1, 3, 0], 5),
            (Value::Null, [0, 0, 3, 0], 5),
            (json!(""), [0, 0, 3, 0], 5),
            (
                json!({ "driver": "qcow2", "file": "mid-file" }),
                [1, 2, 3, 0],
                8,
            ),
            (
                json!({ "driver": "qcow2", "file": "mid-file", "backing": "base" }),
                [1, 2, 3, 0],
                6,
            ),
            (
                json!({ "driver": "qcow2", "file": "mid-file", "backing": null }),
                [0, 2, 3, 0],
                6,
            ),
        ] {
            let add = house.node(&top(backing.clone()));
            assert_eq!(add, Ok(()), "{backing}");
            assert_eq!(names(&house).len(), nodes + 1, "{backing}");
            house.export("vda", "top", true).unwrap();
            assert_eq!(house.look("vda", &PLACES), seen, "{backing}");
            house.delete_export("vda", true).unwrap();
            house.delete_node("top").unwrap();
            assert_eq!(names(&house).len(), 5, "{backing}");
        }
        // Several images have one behind them.
        overlay(&house, "other", "mid", "qcow2");
        house.node(&top(json!("mid"))).unwrap();
        let other = with(qcow2(&house, "other", "other"), "backing", json!("mid"));
        house.node(&other).unwrap();
        house.export("vda", "top", true).unwrap();
        house.export("vdb", "other", true).unwrap();
        assert_eq!(house.look("vdb", &PLACES), [1, 2, 1, 0]);
        // The newest, as with QEMU.
        let used = "Node 'mid' is busy: node is used as backing hd of 'other'";
        assert_eq!(house.delete_node("mid"), Err(used.to_owned()));
        house.delete_export("vdb", true).unwrap();
        house.delete_node("other").unwrap();
        let used = "Node 'mid' is busy: node is used as backing hd of 'top'";
        assert_eq!(house.delete_node("mid"), Err(used.to_owned()));
        house.delete_export("vda", true).unwrap();
        house.delete_node("top").unwrap();
        house.delete_node("mid").unwrap();
        house.close();
    }

    #[test]
    fn what_cannot_be_opened_is_named_and_leaves_nothing() {
        let house = chain();
        overlay(&house, "loop", "loop", "qcow2");
        overlay(&house, "loop2", "loop3", "qcow2");
        overlay(&house, "loop3", "./loop2", "qcow2");
        overlay(&house, "gone", "missing", "qcow2");
        overlay(&house, "gone2", "gone", "qcow2");
        overlay(&house, "wrong", "bases/base.img", "qcow2");
        overlay(&house, "foreign", "bases/base.img", "vmdk");
        overlay(&house, "protocol", "nbd://host/x", "raw");
        overlay(&house, "named", r#"json:{"file":"none"}"#, "raw");
        overlay(&house, "options", r#"json:{"driver":"raw"}"#, "raw");
        overlay(&house, "json", "json:{", "raw");
        overlay(&house, "unsaid", "mid", "qcow2");
        forget_format(&house, "unsaid");
        overlay(&house, "above", "unsaid", "qcow2");
        // Of a chain nobody knew which image was meant, and each one on the way added the same words.
        let behind = |names: &[&str]| {
            let one = |name: &&str| {
                let path = house.path(name);
                format!("Could not open backing file of '{}': ", text(&path))
            };
            names.iter().map(one).collect::<String>()
        };
        let missing = format!(
            "Could not open '{}': No such file or directory",
            text(&house.path("missing"))
        );
        let base = house.path("bases/base.img");
        let not_qcow2 = format!("Image is not in qcow2 format (image '{}')", text(&base));
        let own = |name| {
            format!(
                "Image '{}' would be its own backing file",
                text(&house.path(name))
            )
        };
        let unsaid = format!(
            "Image '{0}' does not say which format its backing file 'mid' has: say it with backing={{driver=...}}, \
             or write it into the image with qemu-img rebase -u -F FORMAT -b 'mid' '{0}'",
            text(&house.path("unsaid"))
        );
        for (image, words) in [
            ("loop", behind(&["loop"]) + &own("loop")),
            ("loop2", behind(&["loop2", "loop3"]) + &own("./loop2")),
            ("gone", behind(&["gone"]) + &missing),
            ("gone2", behind(&["gone2", "gone"]) + &missing),
            ("wrong", behind(&["wrong"]) + &not_qcow2),
            (
                "foreign",
                behind(&["foreign"]) + "Unknown driver 'vmdk' (backing file 'bases/base.img')",
            ),
            (
                "protocol",
                behind(&["protocol"]) + "Unknown protocol 'nbd' (backing file 'nbd://host/x')",
            ),
            (
                "named",
                behind(&["named"]) + "Cannot find device='none' nor node-name='none'",
            ),
            (
                "options",
                behind(&["options"])
                    + r#"Parameter 'file' is missing (backing file 'json:{"driver":"raw"}')"#,
            ),
            (
                "json",
                behind(&["json"])
                    + "Could not parse the JSON options: JSON parse error, premature EOI (backing file 'json:{')",
            ),
            ("unsaid", behind(&["unsaid"]) + &unsaid),
            ("above", behind(&["above", "unsaid"]) + &unsaid),
        ] {
            let refused = house.node(&qcow2(&house, "node", image)).unwrap_err();
            assert_eq!(refused, words, "{image}");
            assert_eq!(names(&house), [""; 0], "{image}");
        }
        let said = with(
            qcow2(&house, "node", "unsaid"),
            "backing",
            qcow2(&house, "mid", "mid"),
        );
        house.node(&said).unwrap();
        house.delete_node("node").unwrap();
        let backed = |backing: Value| with(qcow2(&house, "node", "top"), "backing", backing);
        for (backing, words) in [
            (
                json!("none"),
                behind(&["top"]) + "Cannot find device='none' nor node-name='none'",
            ),
            (
                json!("node"),
                "Making 'node' a backing child of 'node' would create a cycle".to_owned(),
            ),
            (qcow2(&house, "m", "missing"), behind(&["top"]) + &missing),
            (
                qcow2(&house, "node", "mid"),
                behind(&["top"]) + "Duplicate nodes with node-name='node'",
            ),
        ] {
            assert_eq!(house.node(&backed(backing)), Err(words));
            assert_eq!(names(&house), [""; 0]);
        }
        // One that is no image without anything in front of it.
        let plain = json!({ "driver": "qcow2", "node-name": "node", "file": file(&house, "bases/base.img") });
        let words = format!(
            "Image is not in qcow2 format (image '{}' of node 'node')",
            text(&base)
        );
        assert_eq!(house.node(&plain), Err(words));
        house.close();
    }

    /// A header can name what names something else, and so on: there is an end to it.
    #[test]
    fn a_chain_has_a_bound() {
        let house = House::new();
        house.image("0");
        overlay(&house, "1", "0", "raw");
        // Copies of one image but for the name: quicker than to make each.
        let image = fs::read(house.path("1")).unwrap();
        let offset = usize::try_from(u64::from_be_bytes(image[8..16].try_into().unwrap())).unwrap();
        let format = image
            .windows(3)
            .position(|window| window == b"raw")
            .unwrap();
        for number in 2..=201u32 {
            let mut image = image.clone();
            let name = (number - 1).to_string();
            image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            image[offset..offset + name.len()].copy_from_slice(name.as_bytes());
            image[format - 1] = 5;
            image[format..format + 5].copy_from_slice(b"qcow2");
            fs::write(house.path(&number.to_string()), image).unwrap();
        }
        let behind = |name| {
            let path = house.path(name);
            format!("Could not open backing file of '{}': ", text(&path))
        };
        let words = [
            &behind("201"),
            &behind("200"),
            &behind("199"),
            "and so on through 197 more images: ",
            &behind("1"),
            "The backing chain of node 'top' is longer than 200 images",
        ]
        .concat();
        let refused = house.node(&qcow2(&house, "top", "201"));
        assert_eq!(refused, Err(words));
        assert_eq!(names(&house), [""; 0]);
        house.node(&qcow2(&house, "top", "200")).unwrap();
        assert_eq!(house.registry.node("top").unwrap().chain().count(), 201);
        house.export("vda", "top", true).unwrap();
        assert_eq!(house.look("vda", &[0]), [0]);
        let above = with(qcow2(&house, "above", "201"), "backing", json!("top"));
        let words = "The backing chain of node 'above' is longer than 200 images";
        assert_eq!(house.node(&above), Err(words.to_owned()));
        house.delete_export("vda", true).unwrap();
        house.delete_node("top").unwrap();
        house.close();
    }

    /// Between the two another process may change what an image says: what is behind it then is another disk.
    #[test]
    fn what_an_image_names_is_looked_at_when_its_use_begins() {
        let house = chain();
        house.node(&qcow2(&house, "top", "top")).unwrap();
        let (top, base) = (house.path("top"), house.path("bases/base.img"));
        let rebase = |backing: &Path, format: &str| {
            let arguments = [
                "rebase",
                "-uq",
                "-F",
                format,
                "-b",
                text(backing),
                text(&top),
            ];
            run("qemu-img", &arguments).unwrap();
        };
        let base_of_zeroes = vec![0; 1 << 20];
        rebase(&base, "raw");
        let refused = house.export("vda", "top", true).unwrap_err();
        assert!(refused.contains("names another backing file"), "{refused}");
        assert_eq!(refused.matches("node 'top'").count(), 1, "{refused}");
        // It was not told which node it was, or which file.
        let image = fs::read(&top).unwrap();
        fs::write(&top, &base_of_zeroes).unwrap();
        let words = "node 'top': Image is not in qcow2 format";
        assert_eq!(house.export("vda", "top", true), Err(words.to_owned()));
        let resized = house.wait(house.registry.resize("top", DISK)).unwrap_err();
        assert_eq!(resized.to_string(), words);
        fs::write(&top, image).unwrap();
        rebase(Path::new("mid"), "qcow2");
        house.export("vda", "top", true).unwrap();
        house.delete_export("vda", true).unwrap();
        house.close();
    }

    /// What has been read through a backing node is not to be written by anybody else here.
    #[test]
    fn a_backing_node_that_is_written_has_no_readers_that_mind() {
        let house = chain();
        house.file("mid-file", "mid").unwrap();
        let mid = json!({ "driver": "qcow2", "node-name": "mid", "file": "mid-file" });
        house.node(&mid).unwrap();
        let top = with(qcow2(&house, "top", "top"), "backing", json!("mid"));
        house.node(&top).unwrap();
        house.export("vda", "top", true).unwrap();
        // As with QEMU: exports share all, so this is the administrator's to know.
        house.export("vdb", "mid", true).unwrap();
        house.export("vdc", "mid-file", true).unwrap_err();
        house.close();
    }

    /// As Proxmox does when a commit by others has ended: what was below is there twice, and then once.
    #[test]
    fn a_chain_is_changed_under_load() {
        let house = House::new();
        house.image("base.img");
        overlay(&house, "mid", "base.img", "raw");
        overlay(&house, "top", "mid", "qcow2");
        let base = json!({ "driver": "raw", "node-name": "base", "read-only": true,
            "file": file(&house, "base.img") });
        house.node(&base).unwrap();
        let mid = with(qcow2(&house, "mid", "mid"), "backing", json!("base"));
        house.node(&with(mid, "read-only", json!(true))).unwrap();
        house.file("top-file", "top").unwrap();
        let top = json!({ "driver": "qcow2", "node-name": "top", "file": "top-file" });
        let backed = |backing: Value| with(top.clone(), "backing", backing);
        house.node(&backed(json!("mid"))).unwrap();
        house.export("vda", "top", true).unwrap();
        let load = house.load("vda");
        for round in 0..10 {
            let backing = ["base", "mid"][round % 2];
            house
                .reopen(&backed(json!(backing)), Some(PATIENCE))
                .unwrap();
            let top = house.registry.node("top").unwrap();
            assert_eq!(&**top.backing().unwrap().name(), backing);
            let used = format!("Node '{backing}' is busy: node is used as backing hd of");
            assert!(house.delete_node(backing).unwrap_err().starts_with(&used));
            std::thread::sleep(Duration::from_millis(10));
        }
        house
            .reopen(&backed(json!("base")), Some(PATIENCE))
            .unwrap();
        house.delete_node("mid").unwrap();
        // Nothing was ever written below: zeroes are behind it as well.
        house.reopen(&backed(Value::Null), Some(PATIENCE)).unwrap();
        house.delete_node("base").unwrap();
        assert!(load.end() > 100);
        house.delete_export("vda", true).unwrap();
        run("qemu-img", &["check", "-q", text(&house.path("top"))]).unwrap();
        house.close();
    }

    /// The new opening had read the image before the former one, whose write-back had failed at the drain, wrote it with the
    /// last chance that it gets.
    #[test]
    fn what_is_handed_over_late_is_seen() {
        let house = chain();
        house.file("top-file", "top").unwrap();
        let faulty = json!({ "driver": "blkdebug", "node-name": "faulty", "image": "top-file" });
        house.node(&faulty).unwrap();
        let top =
            json!({ "driver": "qcow2", "node-name": "top", "file": "faulty", "backing": null });
        house.node(&top).unwrap();
        house.export("vda", "top", true).unwrap();
        let data = [7; 512];
        let write = Request::Write {
            sector: (3 << 20) / 512,
            data: &data,
        };
        let mut disk = house.connect("vda");
        assert!(disk.execute(0, write, PATIENCE).unwrap().is_ok());
        let faulty = house.registry.node("faulty").unwrap();
        faulty.fault_plan().unwrap().add(InjectError {
            iotype: Some(IoType::Flush),
            once: true,
            ..InjectError::default()
        });
        let direct = with(top, "cache", json!({ "direct": true }));
        house.reopen(&direct, Some(PATIENCE)).unwrap();
        assert!(
            faulty.fault_plan().unwrap().status().is_empty(),
            "it has failed"
        );
        let read = Request::Read {
            sector: (3 << 20) / 512,
            len: 512,
        };
        let done = disk.execute(0, read, PATIENCE).unwrap();
        assert_eq!(done.data, data);
        drop((disk, faulty));
        house.delete_export("vda", true).unwrap();
        house.close();
    }

    /// QEMU's words, asked of its storage daemon.
    #[test]
    fn reopening_says_what_is_behind() {
        let house = chain();
        let base = json!({ "driver": "raw", "node-name": "base", "read-only": true,
            "file": file(&house, "bases/base.img") });
        house.node(&base).unwrap();
        house.file("top-file", "top").unwrap();
        let top = json!({ "driver": "qcow2", "node-name": "top", "file": "top-file" });
        house.node(&top).unwrap();
        assert_eq!(names(&house).len(), 8);
        let reopen = |options: &Value| house.reopen(options, Some(PATIENCE));
        let backed = |backing: Value| with(top.clone(), "backing", backing);
        let missing = Err("backing is missing for 'top'".to_owned());
        assert_eq!(reopen(&top), missing);
        assert_eq!(reopen(&backed(Value::Null)), Ok(()));
        assert_eq!(names(&house).len(), 4, "what the image named has gone");
        assert_eq!(reopen(&top), missing, "the image still names one");
        let nested = backed(json!({ "driver": "qcow2", "file": file(&house, "mid") }));
        let fixed = Err("Cannot change the option 'backing.driver'".to_owned());
        assert_eq!(reopen(&nested), fixed);
        assert_eq!(reopen(&backed(json!("base"))), Ok(()));
        let circle = Err("Making 'top' a backing child of 'top' would create a cycle".to_owned());
        assert_eq!(reopen(&backed(json!("top"))), circle);
        let none = Err("Cannot find device='' nor node-name='none'".to_owned());
        assert_eq!(reopen(&backed(json!("none"))), none);
        assert_eq!(reopen(&backed(Value::Null)), Ok(()));
        house.delete_node("top").unwrap();

        // What was defined in place goes along, and is changed in place.
        let mid = |more: Value| {
            let mut mid = json!({ "driver": "qcow2", "node-name": "mid",
                "file": { "driver": "file", "node-name": "mid-file", "filename": house.path("mid") } });
            for (member, value) in more.as_object().unwrap() {
                mid[member] = value.clone();
            }
            mid
        };
        house.node(&backed(mid(json!({})))).unwrap();
        let missing = Err("backing is missing for 'mid'".to_owned());
        assert_eq!(reopen(&backed(mid(json!({})))), missing);
        let based = mid(json!({ "backing": "base", "cache": { "direct": true } }));
        assert_eq!(reopen(&backed(based)), Ok(()));
        let node = |name: &str| house.registry.node(name).unwrap();
        assert!(node("mid-file").driver().info().cache_direct);
        assert!(node("mid").read_only());
        assert_eq!(&**node("mid").backing().unwrap().name(), "base");
        house.export("vda", "top", true).unwrap();
        assert_eq!(house.look("vda", &PLACES), [1, 2, 3, 0]);
        assert_eq!(reopen(&backed(json!("mid"))), Ok(()));
        assert_eq!(reopen(&backed(json!("base"))), Ok(()));
        assert_eq!(house.look("vda", &PLACES), [1, 1, 3, 0]);
        assert!(house.registry.node("mid").is_err(), "nobody uses it");
        house.delete_export("vda", true).unwrap();
        house.close();
    }
}
