//! What only the storage knows, asked where nobody else waits for it.
//!
//! A query gets an answer within [`ANSWER_TIME_MAX`], or the last one there was. While a question is
//! overdue nobody waits at all: storage that hangs costs one query that time, and one thread per node.

use std::sync::{Arc, Weak};
use std::time::Duration;

use block::Node;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

/// How long a query waits for an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(100);

/// Most questions at once. More are answered by what was known before.
const QUESTIONS_MAX: usize = 128;

#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    /// Bytes allocated, if anybody has ever said.
    allocated: Option<u64>,
    /// Since when the next answer is waited for.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Question {
    node: Weak<Node>,
    answer: Arc<watch::Sender<Answer>>,
}

/// What the storage under all nodes has last said.
#[derive(Debug)]
pub(crate) struct Storage {
    questions: Mutex<Vec<Question>>,
    places: Arc<Semaphore>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            questions: Mutex::default(),
            places: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        }
    }
}

impl Storage {
    fn answer(&self, node: &Arc<Node>) -> Arc<watch::Sender<Answer>> {
        let mut questions = self.questions.lock();
        let known = |question: &&Question| std::ptr::eq(question.node.as_ptr(), Arc::as_ptr(node));
        if let Some(question) = questions.iter().find(known) {
            return Arc::clone(&question.answer);
        }
        // Nodes that are gone.
        questions.retain(|question| question.node.strong_count() > 0);
        let answer = Arc::new(watch::Sender::new(Answer::default()));
        questions.push(Question {
            node: Arc::downgrade(node),
            answer: Arc::clone(&answer),
        });
        answer
    }

    /// Bytes allocated on the storage, if that is known. Takes at most [`ANSWER_TIME_MAX`].
    pub(crate) async fn allocated(&self, node: &Arc<Node>) -> Option<u64> {
        let answer = self.answer(node);
        if answer.borrow().asked.is_none()
            && let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
        {
            answer.send_modify(|answer| answer.asked = Some(Instant::now()));
            let (node, answer) = (Arc::clone(node), Arc::clone(&answer));
            tokio::task::spawn_blocking(move || {
                let allocated = node.driver().actual_size();
                answer.send_replace(Answer {
                    allocated,
                    asked: None,
                });
                drop(place);
            });
        }
        let asked = answer.borrow().asked;
        if let Some(asked) = asked {
            let mut changes = answer.subscribe();
            let answered = changes.wait_for(|answer| answer.asked.is_none());
            // Too late: what was known before counts.
            let _ = timeout_at(asked + ANSWER_TIME_MAX, answered).await;
        }
        answer.borrow().allocated
    }

    /// [`Self::allocated`] of several nodes, in the same time.
    pub(crate) async fn sizes(&self, nodes: Vec<Arc<Node>>) -> Sizes {
        let asked = nodes.iter().map(|node| self.allocated(node));
        let sizes = futures_util::future::join_all(asked).await;
        Sizes(nodes.into_iter().zip(sizes).collect())
    }
}

/// What was said of some nodes.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Vec<(Arc<Node>, Option<u64>)>);

impl Sizes {
    /// Bytes allocated on the storage, if `node` was asked and that is known.
    pub(crate) fn of(&self, node: &Arc<Node>) -> Option<u64> {
        let known = self.0.iter().find(|(known, _)| Arc::ptr_eq(known, node));
        known?.1
    }
}
