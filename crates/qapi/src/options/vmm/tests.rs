use super::*;
use crate::options::{ObjectOptions, ObjectVariant};

#[test]
fn vmm_links_by_socket() {
    let object = |text: &str| ObjectOptions::parse(text).map_err(|e| e.desc);
    let socket = || VmmSocketOptions {
        path: "run/vm,0.sock".to_owned(),
    };
    for (name, variant) in [
        ("vmm-qemu", ObjectVariant::VmmQemu(socket())),
        (
            "vmm-cloud-hypervisor",
            ObjectVariant::VmmCloudHypervisor(socket()),
        ),
        ("vmm-firecracker", ObjectVariant::VmmFirecracker(socket())),
    ] {
        let parsed = object(&format!("{name},id=vm0,path=run/vm,,0.sock")).unwrap();
        assert_eq!((&*parsed.base.id, parsed.kind().name()), ("vm0", name));
        assert_eq!(parsed.variant, variant);
        let missing = object(&format!("{name},id=vm0")).unwrap_err();
        assert_eq!(missing, "Parameter 'path' is missing");
    }
    let long = "x".repeat(108);
    for (path, desc) in [
        ("", "Parameter 'path' expects the path of the VMM's socket"),
        ("\0a", "Parameter 'path' contains a NUL byte"),
        (&*long, &*format!("UNIX socket path '{long}' is too long")),
    ] {
        let text = format!("vmm-qemu,id=vm0,path={path}");
        assert_eq!(object(&text).unwrap_err(), desc);
    }
    assert!(object(&format!("vmm-qemu,id=vm0,path={}", &long[1..])).is_ok());
}

#[test]
fn vmm_links_by_commands() {
    let parsed = |text: &str| match ObjectOptions::parse(text) {
        Ok(ObjectOptions {
            variant: ObjectVariant::VmmCommand(command),
            ..
        }) => {
            let state = command.state.as_ref();
            let words = |argv: &VmmArgv, name| argv.words(name).unwrap().join(" ");
            Ok([
                words(&command.pause, "pause"),
                words(&command.resume, "resume"),
                state.map_or(String::new(), |state| words(state, "state")),
            ])
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.desc),
    };
    let expected = ["p a,b", "r", ""].map(str::to_owned);
    for text in [
        r#"vmm-command,id=vm0,pause=["p",,"a,,b"],resume=["r"]"#,
        "vmm-command,id=vm0,pause.0=p,pause.1=a,,b,resume.0=r",
        r#"{"qom-type": "vmm-command", "id": "vm0", "pause": ["p", "a,b"], "resume": ["r"]}"#,
        r#"{"qom-type": "vmm-command", "id": "vm0", "pause": ["p", "a,b"], "resume": "[\"r\"]"}"#,
    ] {
        assert_eq!(parsed(text), Ok(expected.clone()), "{text}");
    }
    let state = parsed("vmm-command,id=vm0,pause.0=p,resume.0=r,state.0=/s,state.1=").unwrap();
    assert_eq!(state[2], "/s ");

    let no_list = |name: &str| {
        format!(
            "Parameter '{name}' expects a program and its arguments as a JSON list of strings, \
             such as [\"/bin/vm-{name}\", \"vm0\"]; in key=value options each comma of it is doubled"
        )
    };
    for (properties, desc) in [
        ("resume=[\"r\"]", "Parameter 'pause' is missing".to_owned()),
        ("pause=[\"p\"]", "Parameter 'resume' is missing".to_owned()),
        ("pause=p,resume.0=r", no_list("pause")),
        ("pause=[1],resume.0=r", no_list("pause")),
        ("pause.0=p,resume={}", no_list("resume")),
        ("pause.0=p,resume.0=r,state=", no_list("state")),
        (
            "pause=[],resume.0=r",
            "Parameter 'pause' is an empty list: its first element must be the program".to_owned(),
        ),
        (
            "pause.0=p,resume=[\"\",,\"a\"]",
            "Parameter 'resume' begins with an empty text: its first element must be the program"
                .to_owned(),
        ),
        (
            "pause=[\"p\",,\"\\u0000\"],resume.0=r",
            "Parameter 'pause' contains a NUL byte".to_owned(),
        ),
        (
            "pause.0=p,resume.0=r,path=x",
            "Parameter 'path' is unexpected".to_owned(),
        ),
        (
            "pause.x=p,resume.0=r",
            "Invalid parameter type for 'pause', expected: VmmArgv".to_owned(),
        ),
    ] {
        let text = format!("vmm-command,id=vm0,{properties}");
        assert_eq!(parsed(&text), Err(desc), "{text}");
    }
}
