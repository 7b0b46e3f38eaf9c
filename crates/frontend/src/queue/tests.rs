//! A queue whose device is the test.

use super::*;

struct Driver {
    queue: Queue,
    memory: GuestMemory,
    options: Options,
    violations: Vec<Violation>,
    tokens: u64,
}

/// A queue of 8 entries whose device is the test.
fn driver() -> Driver {
    let mut memory = GuestMemory::new(1 << 20, 1).unwrap();
    let queue = Queue::new(0, 8, true, &mut memory).unwrap();
    let (options, violations) = (Options::default(), Vec::new());
    Driver {
        queue,
        memory,
        options,
        violations,
        tokens: 0,
    }
}

impl Driver {
    fn submit(&mut self, request: &Request<'_>) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let Self {
            queue,
            memory,
            options,
            ..
        } = self;
        queue
            .submit(memory, token, request, Shape::default(), options)
            .unwrap();
        token
    }

    fn poll(&mut self) -> Option<Completion> {
        self.queue
            .poll(&mut self.memory, &self.options, &mut self.violations)
    }

    fn head(&self, token: Token) -> u16 {
        let at = self
            .queue
            .slots
            .iter()
            .position(|slot| slot.token == Some(token))
            .unwrap();
        u16::try_from(at).unwrap()
    }

    /// Answers as a correct device would, writing `byte` everywhere it may write.
    fn complete(&mut self, token: Token, byte: u8) -> u16 {
        let head = self.head(token);
        let slot = &self.queue.slots[usize::from(head)];
        for piece in slot.pieces.iter().filter(|piece| piece.returned) {
            self.memory
                .fill(piece.address, u64::from(piece.len), byte)
                .unwrap();
        }
        self.memory
            .fill(slot.status.unwrap(), 1, STATUS_OK)
            .unwrap();
        let written = u32::try_from(slot.writable).unwrap();
        self.queue.ring.complete_as_device(u32::from(head), written);
        head
    }
}

const READ: Request<'_> = Request::Read {
    sector: 0,
    len: 1024,
};

#[test]
fn completions_out_of_order_return_their_own_data() {
    let mut driver = driver();
    let (first, second) = (driver.submit(&READ), driver.submit(&READ));
    driver.complete(second, 2);
    driver.complete(first, 1);
    for (token, byte) in [(second, 2), (first, 1)] {
        let completion = driver.poll().unwrap();
        assert_eq!((completion.token, completion.is_ok()), (token, true));
        assert_eq!(completion.data, vec![byte; 1024]);
    }
    assert_eq!((driver.poll(), driver.queue.outstanding()), (None, 0));
    assert_eq!(driver.violations, []);
}

#[test]
fn a_second_completion_is_a_violation_whether_or_not_the_head_is_in_use_again() {
    let mut driver = driver();
    let token = driver.submit(&Request::Flush);
    let head = driver.complete(token, 0);
    driver.poll().unwrap();
    driver.queue.ring.complete_as_device(u32::from(head), 1);
    assert_eq!(driver.poll(), None);
    assert_eq!(
        driver.violations,
        [Violation::CompletedTwice { queue: 0, head }]
    );

    driver.violations.clear();
    let others: Vec<_> = (0..4).map(|_| driver.submit(&Request::Flush)).collect();
    let reused = *others
        .iter()
        .find(|&&other| driver.head(other) == head)
        .unwrap();
    driver.queue.ring.complete_as_device(u32::from(head), 1);
    assert_eq!(driver.poll().unwrap().status, STATUS_POISON);
    assert_eq!(
        driver.violations,
        [Violation::StatusNotWritten {
            queue: 0,
            token: reused
        }]
    );
}

#[test]
fn used_elements_that_name_no_head_are_violations_and_the_next_one_counts() {
    let mut driver = driver();
    let token = driver.submit(&READ);
    let head = driver.head(token);
    driver.queue.ring.complete_as_device(u32::from(head) + 1, 0);
    driver.queue.ring.complete_as_device(8, 0);
    driver.queue.ring.complete_as_device(0x1_0000, 0);
    driver.complete(token, 7);
    assert_eq!(driver.poll().unwrap().token, token);
    assert_eq!(
        driver.violations,
        [
            Violation::NeverSubmitted {
                queue: 0,
                head: head + 1
            },
            Violation::IdOutOfRange { queue: 0, id: 8 },
            Violation::IdOutOfRange {
                queue: 0,
                id: 0x1_0000
            },
        ]
    );
}

#[test]
fn a_used_index_that_runs_away_stops_the_polling() {
    let mut driver = driver();
    driver.submit(&READ);
    driver.queue.ring.set_used_index_as_device(9);
    assert_eq!((driver.poll(), driver.poll()), (None, None));
    assert_eq!(
        driver.violations,
        [Violation::UsedIndexJump {
            queue: 0,
            expected: 0,
            found: 9
        }]
    );
}

#[test]
fn claiming_to_have_written_too_much_is_a_violation() {
    let mut driver = driver();
    let token = driver.submit(&READ);
    let head = driver.head(token);
    let status = driver.queue.slots[usize::from(head)].status.unwrap();
    driver.memory.fill(status, 1, STATUS_OK).unwrap();
    driver.queue.ring.complete_as_device(u32::from(head), 1026);
    assert!(driver.poll().unwrap().is_ok());
    let expected = Violation::WrittenTooLong {
        queue: 0,
        token,
        written: 1026,
        writable: 1025,
    };
    assert_eq!(driver.violations, [expected]);
}

#[test]
fn touching_a_stopped_ring_is_noticed() {
    let mut driver = driver();
    let token = driver.submit(&READ);
    driver.queue.note_stopped(&driver.memory);
    driver
        .queue
        .check_stopped(&driver.memory, &mut driver.violations);
    assert_eq!(driver.violations, []);
    driver.queue.note_stopped(&driver.memory);
    driver.complete(token, 1);
    driver
        .queue
        .check_stopped(&driver.memory, &mut driver.violations);
    assert_eq!(driver.violations.len(), 2, "{:?}", driver.violations);
}

#[test]
fn writes_into_dropped_buffers_are_noticed_and_new_requests_are_not_mistaken_for_them() {
    let mut driver = driver();
    driver.submit(&READ);
    let address = driver.queue.slots[0].pieces[0].address;
    let dropped = driver.queue.reset(&mut driver.memory).unwrap().remove(0);
    assert_eq!(dropped.check(&driver.memory), None);

    let new = driver.submit(&READ);
    driver.complete(new, 9);
    assert_eq!(driver.poll().unwrap().data, vec![9; 1024]);
    assert_eq!(dropped.check(&driver.memory), None);

    driver.memory.fill(address + 1000, 1, 0).unwrap();
    let token = dropped.token();
    let stray = Violation::StrayWrite {
        queue: 0,
        token,
        address: address + 1000,
    };
    assert_eq!(dropped.check(&driver.memory), Some(stray));
    assert_eq!(driver.violations, []);
}

#[test]
fn a_request_that_does_not_fit_leaves_nothing_behind() {
    let mut driver = driver();
    let Driver {
        queue,
        memory,
        options,
        ..
    } = &mut driver;
    let shape = Shape {
        segments: 4,
        indirect: false,
    };
    queue
        .submit(
            memory,
            Token(1),
            &READ,
            Shape {
                segments: 2,
                ..shape
            },
            options,
        )
        .unwrap();
    let full = queue.submit(memory, Token(2), &READ, shape, options);
    assert_eq!(full, Err(SubmitError::QueueFull));
    let huge = Request::Read {
        sector: 0,
        len: 1 << 20,
    };
    assert_eq!(
        queue.submit(memory, Token(2), &huge, Shape::default(), options),
        Err(SubmitError::MemoryFull)
    );
    let many = Shape {
        segments: 7,
        indirect: true,
    };
    assert_eq!(
        queue.submit(memory, Token(2), &READ, many, options),
        Err(SubmitError::TooManyDescriptors { needed: 9, max: 8 })
    );
    assert_eq!((queue.outstanding(), queue.ring.free_descriptors()), (1, 4));
    queue
        .submit(
            memory,
            Token(2),
            &READ,
            Shape {
                segments: 2,
                ..shape
            },
            options,
        )
        .unwrap();
    assert_eq!(queue.ring.free_descriptors(), 0);
}

#[test]
fn an_indirect_table_takes_one_descriptor_and_links_all() {
    let mut driver = driver();
    let Driver {
        queue,
        memory,
        options,
        ..
    } = &mut driver;
    let shape = Shape {
        segments: 3,
        indirect: true,
    };
    queue
        .submit(memory, Token(1), &READ, shape, options)
        .unwrap();
    assert_eq!(queue.ring.free_descriptors(), 7);
    let slot = &queue.slots[0];
    let table = slot.pieces.last().unwrap();
    let mut bytes = vec![0; table.len as usize];
    memory.read(table.address, &mut bytes).unwrap();
    let flags: Vec<_> = bytes.chunks(16).map(|desc| (desc[12], desc[14])).collect();
    assert_eq!(flags, [(1, 1), (3, 2), (3, 3), (3, 4), (2, 0)]);
    let lens: Vec<_> = bytes
        .chunks(16)
        .map(|d| u32::from_le_bytes(d[8..12].try_into().unwrap()))
        .collect();
    assert_eq!(lens, [16, 341, 341, 342, 1]);
    assert_eq!(slot.writable, 1025);
}
