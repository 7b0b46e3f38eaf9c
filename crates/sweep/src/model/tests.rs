use super::*;

struct Told(Model, usize);

impl Told {
    fn event(&mut self, event: &Guest) {
        self.1 += 1;
        self.0.apply(self.1, event).expect("nothing is wrong yet");
    }

    fn begin(&mut self, id: u32, ask: Ask) {
        let request = Request {
            ask,
            first: 0,
            sectors: 1,
            fua: false,
            hand: 0,
        };
        self.event(&Guest::Began {
            id,
            stamp: id,
            request,
        });
    }

    fn end(&mut self, id: u32, failed: bool) {
        let failed = failed.then_some(libc::EIO);
        self.event(&Guest::Ended {
            id,
            failed,
            seen: Vec::new(),
        });
    }

    fn read(&mut self, id: u32, value: Value) {
        self.begin(id, Ask::Read);
        self.event(&Guest::Ended {
            id,
            failed: None,
            seen: vec![Ok(value)],
        });
    }

    /// Which of zero and the first stamps may be there: now, and after a cut.
    fn may(&self) -> (Vec<u32>, Vec<u32>) {
        let value = |stamp| match stamp {
            0 => Value::Zero,
            stamp => Value::Stamp(stamp),
        };
        let all =
            |right: &dyn Fn(Value) -> bool| (0..9).filter(|&stamp| right(value(stamp))).collect();
        (
            all(&|value| self.0.stopped(self.1, &[Ok(value)]).is_ok()),
            all(&|value| self.0.after_cut(&[Ok(value)]).is_ok()),
        )
    }
}

fn told() -> Told {
    Told(Model::new(&[Some(Value::Zero)], 1), 0)
}

#[test]
fn a_flush_makes_durable_what_was_acknowledged_before_it_began() {
    let mut told = told();
    told.begin(1, Ask::Write);
    assert_eq!(told.may(), (vec![0, 1], vec![0, 1]));
    told.end(1, false);
    assert_eq!(told.may(), (vec![1], vec![0, 1]));
    told.begin(2, Ask::Write);
    told.begin(8, Ask::Flush);
    told.end(2, false);
    told.end(8, false);
    assert_eq!(told.may(), (vec![2], vec![1, 2]));
    told.begin(8, Ask::Flush);
    told.end(8, true);
    assert_eq!(told.may(), (vec![2], vec![1, 2]));
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert_eq!(told.may(), (vec![2], vec![2]));
}

/// A flush that ended meanwhile has made such a read wrong.
#[test]
fn a_read_may_find_what_was_there_when_it_began() {
    let mut told = told();
    told.begin(1, Ask::Write);
    told.begin(7, Ask::Read);
    told.end(1, false);
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert_eq!(told.may(), (vec![1], vec![1]));
    told.event(&Guest::Ended {
        id: 7,
        failed: None,
        seen: vec![Ok(Value::Zero)],
    });
    told.read(6, Value::Stamp(1));
    told.begin(5, Ask::Read);
    let late = Guest::Ended {
        id: 5,
        failed: None,
        seen: vec![Ok(Value::Zero)],
    };
    assert!(told.0.apply(99, &late).is_err());
}

#[test]
fn of_two_at_once_either_may_win() {
    let mut told = told();
    told.begin(1, Ask::Write);
    told.begin(2, Ask::Write);
    told.end(2, false);
    told.end(1, false);
    assert_eq!(told.may(), (vec![1, 2], vec![0, 1, 2]));
    told.read(7, Value::Stamp(2));
    assert_eq!(told.may(), (vec![2], vec![0, 1, 2]));
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert_eq!(told.may(), (vec![2], vec![2]), "what was read stays");
}

#[test]
fn what_failed_or_was_discarded_may_be_there() {
    let mut told = told();
    told.begin(1, Ask::Write);
    told.end(1, false);
    told.begin(2, Ask::Write);
    told.end(2, true);
    assert_eq!(told.may(), (vec![1, 2], vec![0, 1, 2]));
    told.begin(3, Ask::Write);
    told.end(3, false);
    told.begin(4, Ask::Discard);
    told.end(4, false);
    assert_eq!(told.may().0, vec![0, 3]);
}

#[test]
fn what_may_be_lost_supersedes_nothing() {
    let mut told = told();
    told.begin(1, Ask::Write);
    told.end(1, false);
    told.event(&Guest::LossAccepted);
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert_eq!(told.may(), (vec![1], (0..9).collect()));
    told.begin(2, Ask::Write);
    told.end(2, false);
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert_eq!(told.may(), (vec![2], vec![2]));
}

#[test]
fn a_length_is_found_as_it_was_or_as_it_is() {
    let mut told = told();
    told.event(&Guest::Resizing { from: 1, to: 3 });
    let zeroes = |sectors| vec![Ok(Value::Zero); sectors];
    assert!(told.0.after_cut(&zeroes(1)).is_ok() && told.0.after_cut(&zeroes(3)).is_ok());
    told.event(&Guest::Resized {
        from: 1,
        to: 3,
        failed: false,
    });
    assert!(told.0.after_cut(&zeroes(1)).is_ok() && told.0.after_cut(&zeroes(3)).is_ok());
    assert!(told.0.after_cut(&zeroes(2)).is_err());
    told.begin(8, Ask::Flush);
    told.end(8, false);
    assert!(told.0.after_cut(&zeroes(1)).is_err() && told.0.after_cut(&zeroes(3)).is_ok());
}
