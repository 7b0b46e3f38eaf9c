//! Incidents: each begins with a failure, goes on as long as something of it is held, and ends once.

use super::*;

impl World {
    /// After a message: what has begun or ended, with `failed` if a failure counted and `end` if what
    /// is held may have gone by that.
    pub(super) fn check_incidents(
        &mut self,
        outbox: &Outbox,
        failed: Option<usize>,
        end: Option<HoldEnd>,
    ) -> Check {
        if let Some(b) = failed {
            let backend = &mut self.backends[b];
            if backend.incident.is_none() {
                backend.incidents += 1;
                backend.incident = Some(backend.incidents);
            }
        }
        let mut ended: Vec<_> = outbox.ended.iter().collect();
        match self.mutant {
            Mutant::EndUntold => ended.retain(|ended| ended.end != HoldEnd::Attached),
            Mutant::EndToldTwice => ended.extend(ended.clone()),
            _ => {}
        }
        for told in ended {
            let b = self.index(told.backend.ok_or("nobody's incident")?);
            let number = self.backends[b].incident.take();
            ensure!(
                number == Some(told.incident.number),
                "{told:?} has ended, open was {number:?}"
            );
            ensure!(
                Some(told.end) == end,
                "{told:?} has ended, by what is {end:?}"
            );
            self.ends += 1;
        }
        for backend in &self.backends {
            let state = self.control.backend(backend.id);
            let open = state.and_then(|state| state.incident());
            let open = open.map(|incident| incident.number);
            ensure!(
                open == backend.incident,
                "open is {open:?}, by what was told {:?}",
                backend.incident
            );
            ensure!(
                open.is_none() || state.is_some_and(|state| state.holds()),
                "incident {open:?} goes on though nothing is held"
            );
        }
        Ok(())
    }
}
