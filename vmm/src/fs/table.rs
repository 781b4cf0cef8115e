//! A table of things that a guest knows by number.
//!
//! A number is never given out twice: its lower half is the slot and its upper half counts how often the slot has
//! been used. A guest that makes up or keeps a number finds nothing.

/// There is no room for another thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Up to `limit` things with numbers from 1 on.
#[derive(Debug)]
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

#[derive(Debug)]
struct Slot<T> {
    uses: u32,
    content: Option<T>,
}

impl<T> Table<T> {
    /// An empty table. `limit` is cut to what a number can name.
    pub(super) fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit: limit.min(u32::MAX as usize - 1) }
    }

    /// Adds `content` and returns its number.
    ///
    /// # Errors
    /// [`Full`] at the limit.
    pub(super) fn insert(&mut self, content: T) -> Result<u64, Full> {
        if self.is_full() {
            return Err(Full);
        }
        if let Some(index) = self.free.pop() {
            let slot = self.slots.get_mut(index as usize).ok_or(Full)?;
            slot.content = Some(content);
            return Ok(number(slot.uses, index));
        }
        let index = u32::try_from(self.slots.len()).map_err(|_| Full)?;
        self.slots.push(Slot { uses: 0, content: Some(content) });
        Ok(number(0, index))
    }

    /// The thing with this number.
    pub(super) fn get(&self, number: u64) -> Option<&T> {
        let slot = self.slots.get(index(number)?)?;
        slot.content.as_ref().filter(|_| slot.uses == uses(number))
    }

    /// The thing with this number, to change.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(index(number)?)?;
        slot.content.as_mut().filter(|_| slot.uses == uses(number))
    }

    /// Takes out the thing with this number.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let index = index(number)?;
        let slot = self.slots.get_mut(index)?;
        if slot.uses != uses(number) {
            return None;
        }
        let content = slot.content.take()?;
        // A slot that has been used as often as can be counted is not used again.
        if let Some(next) = slot.uses.checked_add(1) {
            slot.uses = next;
            self.free.extend(u32::try_from(index).ok());
        }
        Some(content)
    }

    /// Whether there is no room for another one.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// How many things there are.
    pub(super) fn len(&self) -> usize {
        // Slots that are used up count too, which errs on the safe side.
        self.slots.len() - self.free.len()
    }

    /// All things with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().zip(0_u32..).filter_map(|(slot, index)| {
            slot.content.as_ref().map(|content| (number(slot.uses, index), content))
        })
    }
}

fn number(uses: u32, index: u32) -> u64 {
    (u64::from(uses) << 32) | (u64::from(index) + 1)
}

fn index(number: u64) -> Option<usize> {
    // The lower half; the cast drops the upper one.
    (number as u32).checked_sub(1).map(|index| index as usize)
}

fn uses(number: u64) -> u32 {
    // The upper half.
    (number >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_number_is_one() {
        assert_eq!(Table::new(1).insert(()), Ok(1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(usize),
        RemoveMadeUp(u64),
        GetMadeUp(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u16>().prop_map(Step::Insert),
            2 => any::<usize>().prop_map(Step::Remove),
            1 => any::<u64>().prop_map(Step::RemoveMadeUp),
            1 => (0..20_u64, 0..4_u64).prop_map(|(low, high)| Step::GetMadeUp(high << 32 | low)),
        ]
    }

    proptest! {
        #[test]
        fn a_table_behaves_like_a_map_whose_keys_are_never_reused(
            limit in 0..12_usize,
            steps in proptest::collection::vec(step(), 0..crate::steps(200)),
        ) {
            let mut table = Table::new(limit);
            let mut model: HashMap<u64, u16> = HashMap::new();
            let mut ever: Vec<u64> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(value) => match table.insert(value) {
                        Ok(number) => {
                            prop_assert!(model.len() < limit);
                            prop_assert!(!ever.contains(&number), "number {number} was given out twice");
                            ever.push(number);
                            model.insert(number, value);
                        }
                        Err(Full) => prop_assert_eq!(model.len(), limit),
                    },
                    Step::Remove(which) if !ever.is_empty() => {
                        let number = ever[which % ever.len()];
                        prop_assert_eq!(table.remove(number), model.remove(&number));
                    }
                    Step::Remove(_) => {}
                    Step::RemoveMadeUp(number) => prop_assert_eq!(table.remove(number), model.remove(&number)),
                    Step::GetMadeUp(number) => prop_assert_eq!(table.get(number), model.get(&number)),
                }
                prop_assert_eq!(table.len(), model.len());
                for number in &ever {
                    prop_assert_eq!(table.get(*number), model.get(number));
                    prop_assert_eq!(table.get_mut(*number).copied(), model.get(number).copied());
                }
                let listed: HashMap<u64, u16> = table.iter().map(|(number, value)| (number, *value)).collect();
                prop_assert_eq!(&listed, &model);
            }
        }
    }
}
