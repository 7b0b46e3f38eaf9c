use super::*;

use std::fs::File;

use block::Permissions;

const READ: Permissions = Permissions::CONSISTENT_READ;
const WRITER: Access = Access {
    held: READ.and(Permissions::WRITE).and(Permissions::RESIZE),
    shared: READ.and(Permissions::WRITE_UNCHANGED),
};
const READER: Access = Access {
    held: READ,
    shared: READ
        .and(Permissions::WRITE_UNCHANGED)
        .and(Permissions::RESIZE),
};
/// The bytes of each.
const WRITERS: [i64; 5] = [100, 101, 103, 201, 203];
const READERS: [i64; 2] = [100, 201];

struct Image(tempfile::NamedTempFile);

impl Image {
    fn new() -> Self {
        Self(tempfile::NamedTempFile::new().expect("a temporary file"))
    }

    fn fd(&self) -> OwnedFd {
        let options = File::options().read(true).write(true).open(self.0.path());
        options.expect("the file exists").into()
    }

    /// Nothing is locked yet.
    fn open(&self) -> Locked {
        Locked::new(self.fd(), "b.img", true)
    }

    fn open_two(&self) -> Locked {
        let locked = self.open();
        locked.open_second().expect("it is there");
        locked
    }

    fn lock(&self, wanted: Access) -> Result<Locked, LockError> {
        let locked = self.open();
        locked.lock(wanted).map(|()| locked)
    }

    /// What a stranger finds locked.
    fn locked(&self) -> Vec<i64> {
        let stranger = self.fd();
        let is_locked = |byte: &i64| ofd::is_locked(stranger.as_fd(), *byte).expect("asked");
        (0..300).filter(is_locked).collect()
    }
}

/// The second descriptor of an image does I/O as well: until that has ended, others stay out.
#[test]
fn each_descriptor_has_the_locks() {
    type Begin = fn(&Locked) -> Result<(), LockError>;
    let steps: [Begin; 3] = [
        // It comes when there are locks; before; between the two.
        |one| {
            one.lock(WRITER)?;
            one.open_second().expect("it is there");
            Ok(())
        },
        |one| {
            one.open_second().expect("it is there");
            one.lock(WRITER)
        },
        |one| {
            one.lock(READER)?;
            one.open_second().expect("it is there");
            one.lock(WRITER)
        },
    ];
    for begin in steps {
        for first_goes in [true, false] {
            let image = Image::new();
            let one = image.open();
            begin(&one).expect("nobody else is there");
            let Locked {
                image: first,
                second,
                ..
            } = one;
            let second = second.into_inner().expect("there are two");
            let (goes, left) = match first_goes {
                true => (first, second),
                false => (second, first),
            };
            drop(goes);
            assert_eq!(image.locked(), WRITERS);
            assert!(image.lock(WRITER).expect_err("it is in use").is_locked());
            drop(left);
            image.lock(WRITER).expect("the locks are gone");
        }
    }
}

/// Two descriptors are strangers to the kernel: a reader that was to become a writer was in its own way.
#[test]
fn from_nothing_to_a_writer_and_back() {
    for open in [Image::open, Image::open_two] {
        let image = Image::new();
        let one = open(&image);
        for _ in 0..2 {
            assert!(image.locked().is_empty());
            one.lock(READER).expect("nobody else is there");
            assert_eq!(image.locked(), READERS);
            one.lock(WRITER).expect("nobody else is there");
            assert_eq!(image.locked(), WRITERS);
            one.lock(READER).expect("that is less");
            assert_eq!(image.locked(), WRITERS, "what is there stays");
            one.settle(READER);
            assert_eq!(image.locked(), READERS);
            one.settle(WRITER);
            assert_eq!(image.locked(), READERS, "nothing is taken");
            image.lock(READER).expect("it is a reader");
            one.settle(Access::NONE);
        }
        image.lock(WRITER).expect("nobody uses it");
        drop(one);
    }
}

/// What a writer shares less later on is asked for: its own second descriptor is not in its way, a
/// stranger is.
#[test]
fn a_writer_that_shares_less() {
    let alone = Access {
        held: WRITER.held,
        shared: Permissions::NONE,
    };
    let image = Image::new();
    let one = image.open_two();
    one.lock(WRITER).expect("nobody else is there");
    one.lock(alone).expect("nobody else is there");
    one.settle(WRITER);
    let reader = Access {
        held: READ,
        shared: Permissions::ALL,
    };
    let two = image.lock(reader).expect("it does not mind");
    let error = one.lock(alone).expect_err("somebody reads");
    assert_eq!(
        error.desc,
        "Failed to get shared \"consistent read\" lock on 'b.img'"
    );
    drop(two);
    assert_eq!(image.locked(), WRITERS);
    one.lock(alone).expect("it has gone");
}

/// A refusal, with one descriptor and with two: both have what they had, and no more.
#[test]
fn a_refusal_changes_nothing() {
    for open in [Image::open, Image::open_two] {
        let image = Image::new();
        let one = open(&image);
        one.lock(READER).expect("nobody else is there");
        let two = image.lock(READER).expect("readers get along");
        for _ in 0..2 {
            let error = one.lock(WRITER).expect_err("the other one reads");
            assert_eq!(error.desc, "Failed to get \"write\" lock on 'b.img'");
        }
        drop(two);
        assert_eq!(image.locked(), READERS);
        let Locked {
            image: first,
            second,
            ..
        } = one;
        if let Some(second) = second.into_inner() {
            drop(first);
            assert_eq!(image.locked(), READERS, "the second one, too");
            drop(second);
        } else {
            drop(first);
        }
        assert!(image.locked().is_empty());

        let two = image.lock(WRITER).expect("nobody is there");
        let one = open(&image);
        assert!(one.lock(WRITER).expect_err("in use").is_locked());
        drop(two);
        assert!(image.locked().is_empty(), "it has got nothing");
    }
}

/// An image that is opened once more, by us, to take the place of another opening.
#[test]
fn another_opening_of_ours_is_not_asked() {
    let image = Image::new();
    let one = image.open_two();
    one.lock(WRITER).expect("nobody else is there");
    let two = image.open_two();
    assert!(two.lock(WRITER).expect_err("a stranger").is_locked());
    two.lock_beside(WRITER).expect("it is ours");
    drop(one);
    assert_eq!(image.locked(), WRITERS);
    assert!(image.lock(READER).expect_err("in use").is_locked());
    two.settle(Access::NONE);
    assert!(image.locked().is_empty());
}

#[test]
fn without_locks_there_are_none_to_give_back() {
    let image = Image::new();
    // By the same descriptor, as what a drop gives back.
    let one = image.open();
    one.lock(WRITER).expect("nobody else is there");
    let same = one.image.fd.try_clone().expect("a descriptor");
    drop(Locked::new(same, "b.img", false));
    assert_eq!(image.locked(), WRITERS);
}

/// A node that was opened again at once was told now and then that its image is in use: a request
/// whose end had been reported, or a child that was just being forked, still had the descriptor.
#[test]
fn locks_are_given_back_whoever_still_has_the_descriptor() {
    let image = Image::new();
    let open = || {
        let one = image.open_two();
        let first = one.image.fd.try_clone().expect("a descriptor");
        let second = one.second().map(|fd| fd.try_clone_to_owned());
        (
            one,
            (first, second.expect("there are two").expect("cloned")),
        )
    };
    let (one, _others) = open();
    let (two, _refused) = open();
    one.lock(WRITER).expect("nobody else is there");
    assert!(two.lock(WRITER).expect_err("it is in use").is_locked());
    drop(two);
    drop(one);
    image
        .lock(WRITER)
        .expect("neither the first nor the refused one");
    let (one, _others) = open();
    one.lock(WRITER).expect("nobody else is there");
    one.settle(Access::NONE);
    image.lock(WRITER).expect("it was given back");
}

/// Each pair of users of one image, as QEMU's permission rules have it.
#[test]
fn conflicts_table() {
    let with = |held, shared| Access { held, shared };
    let no_writers = WRITER.shared;
    let reader = |shared| with(READ, shared);
    let writer = |shared| with(WRITER.held, shared);
    for (first, second, expected) in [
        (
            writer(no_writers),
            writer(no_writers),
            "Failed to get \"write\" lock on 'b.img'",
        ),
        (
            writer(no_writers),
            writer(Permissions::ALL),
            "Failed to get \"write\" lock on 'b.img'",
        ),
        (
            writer(Permissions::ALL),
            writer(no_writers),
            "Failed to get shared \"write\" lock on 'b.img'",
        ),
        (
            writer(no_writers),
            reader(no_writers),
            "Failed to get shared \"write\" lock on 'b.img'",
        ),
        (writer(no_writers), reader(Permissions::ALL), ""),
        (reader(no_writers), reader(no_writers), ""),
        (
            reader(no_writers),
            writer(Permissions::ALL),
            "Failed to get \"write\" lock on 'b.img'",
        ),
        (writer(Permissions::ALL), writer(Permissions::ALL), ""),
        (writer(no_writers), Access::NONE, ""),
        (Access::NONE, writer(no_writers), ""),
    ] {
        let image = Image::new();
        let one = image.lock(first).expect("nobody else is there");
        let got = image.lock(second);
        let desc = got.as_ref().err().map_or("", |error| &error.desc);
        assert_eq!(desc, expected, "{first:?} {second:?}");
        if let Err(error) = &got {
            assert!(error.is_locked());
            assert_eq!(
                error.hint.as_deref(),
                Some("Is another process using the image [b.img]?")
            );
        }
        drop((one, got));
        image.lock(WRITER).expect("the locks are gone");
    }
}
