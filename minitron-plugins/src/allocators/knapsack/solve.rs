//! The multiple-choice knapsack: one choice of each item, or none of them, so that enough is saved.

/// Cells of the table over what is saved.
const CELLS: f64 = 20_000.0;
/// Halvings of an interval of Lagrange's multiplier.
const HALVINGS: usize = 60;

/// The choices of one part of a layer.
pub(super) struct Item(pub Vec<Weighed>);

/// What a choice costs in quality, and what it saves of each budget.
pub(super) struct Weighed {
    pub score: f64,
    pub saved: Vec<f64>,
}

impl Item {
    /// Of one budget.
    pub fn most_saved(&self, budget: usize) -> f64 {
        let saved = self.0.iter().map(|choice| choice.of(budget));
        saved.fold(0.0, f64::max)
    }
}

impl Weighed {
    fn of(&self, budget: usize) -> f64 {
        self.saved.get(budget).copied().unwrap_or(0.0)
    }
}

/// For each solution the choice of each item; `None` keeps it whole.
pub(super) type Solution = Vec<Option<usize>>;

/// The `n` solutions with the lowest sums of scores that save at least `needs`, best first; nothing
/// where none does.
pub(super) fn cheapest(items: &[Item], needs: &[f64], n: usize) -> Vec<Solution> {
    let found = solve(items, needs, 0.0, n);
    let second_holds = |solution: &Solution| {
        needs.len() < 2 || total(items, solution, |choice| choice.of(1)) >= needs[1]
    };
    if found.iter().all(second_holds) {
        return found;
    }
    // The least multiplier at which the second budget holds too.
    let scale = items
        .iter()
        .flat_map(|item| &item.0)
        .map(|choice| choice.score);
    let most = items
        .iter()
        .flat_map(|item| &item.0)
        .map(|choice| choice.of(1));
    let scale = scale.sum::<f64>() / most.fold(1.0, f64::max);
    let holds = |lambda: f64| {
        let found = solve(items, needs, lambda, n);
        let held: Vec<Solution> = found.into_iter().filter(|one| second_holds(one)).collect();
        (!held.is_empty()).then_some(held)
    };
    let (mut least, mut lambda) = (0.0, scale.max(f64::MIN_POSITIVE));
    let mut best = None;
    for _ in 0..HALVINGS {
        match holds(lambda) {
            Some(held) => {
                best = Some(held);
                break;
            }
            None => (least, lambda) = (lambda, lambda * 8.0),
        }
    }
    for _ in 0..HALVINGS {
        let between = f64::midpoint(least, lambda);
        match holds(between) {
            Some(held) => (best, lambda) = (Some(held), between),
            None => least = between,
        }
    }
    let mut best = best.unwrap_or_default();
    best.sort_by(|a, b| {
        let score = |solution| total(items, solution, |choice| choice.score);
        score(a).total_cmp(&score(b))
    });
    best
}

fn total(items: &[Item], solution: &Solution, of: impl Fn(&Weighed) -> f64) -> f64 {
    let mut total = 0.0;
    for (item, choice) in items.iter().zip(solution) {
        total += choice
            .and_then(|choice| item.0.get(choice))
            .map_or(0.0, &of);
    }
    total
}

/// One way to save so much: its score, and where it came from.
#[derive(Clone, Copy)]
struct Way {
    score: f64,
    choice: Option<usize>,
    /// Cell and place in it before this item.
    from: (usize, usize),
}

/// Exact for the first budget, by what is saved of it in whole cells, capped at the need: a cell
/// holds the `n` best ways to save so much. Scores are score − λ · what is saved of the second.
fn solve(items: &[Item], needs: &[f64], lambda: f64, n: usize) -> Vec<Solution> {
    let need = needs.first().copied().unwrap_or(0.0).max(0.0);
    let step = cell(items, need);
    let last = (need / step).ceil() as usize;
    let start = Way {
        score: 0.0,
        choice: None,
        from: (0, 0),
    };
    let mut before = vec![Vec::new(); last + 1];
    before[0].push(start);
    let mut history = Vec::with_capacity(items.len());
    for item in items {
        let mut after: Vec<Vec<Way>> = vec![Vec::new(); last + 1];
        for (saved, ways) in before.iter().enumerate() {
            for (place, way) in ways.iter().enumerate() {
                let from = (saved, place);
                put(
                    &mut after[saved],
                    Way {
                        choice: None,
                        from,
                        ..*way
                    },
                    n,
                );
                for (idx, choice) in item.0.iter().enumerate() {
                    // Down, so that no solution saves less than it says.
                    let more = (choice.of(0) / step + 1e-9).floor() as usize;
                    let score = way.score + choice.score - lambda * choice.of(1);
                    let way = Way {
                        score,
                        choice: Some(idx),
                        from,
                    };
                    put(&mut after[(saved + more).min(last)], way, n);
                }
            }
        }
        history.push(std::mem::replace(&mut before, after));
        // Ways of this item are found again in what comes next.
    }
    history.push(before);
    traced(&history, last)
}

/// Keeps the best ones in order.
fn put(cell: &mut Vec<Way>, way: Way, n: usize) {
    let place = cell.partition_point(|other| other.score <= way.score);
    if place < n {
        cell.insert(place, way);
        cell.truncate(n);
    }
}

/// From the last cell back to the first item.
fn traced(history: &[Vec<Vec<Way>>], last: usize) -> Vec<Solution> {
    let mut solutions = Vec::new();
    let n_ways = history
        .last()
        .and_then(|cells| cells.get(last))
        .map_or(0, Vec::len);
    for place in 0..n_ways {
        let (mut at, mut solution) = ((last, place), Vec::new());
        for cells in history.iter().skip(1).rev() {
            if let Some(way) = cells.get(at.0).and_then(|ways| ways.get(at.1)) {
                solution.push(way.choice);
                at = way.from;
            }
        }
        solution.reverse();
        solutions.push(solution);
    }
    solutions
}

/// What all savings are multiples of, where there is something so large; else a small share of the
/// need.
fn cell(items: &[Item], need: f64) -> f64 {
    let finest = (need / CELLS).max(f64::MIN_POSITIVE);
    let mut common = 0_u64;
    for choice in items.iter().flat_map(|item| &item.0) {
        let saved = choice.of(0);
        if saved.fract() != 0.0 || saved > 2f64.powi(53) {
            return finest;
        }
        common = gcd(common, saved as u64);
    }
    (common as f64).max(finest)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(all: &[&[(f64, f64, f64)]]) -> Vec<Item> {
        let weighed = |&(score, saved, second): &(f64, f64, f64)| Weighed {
            score,
            saved: vec![saved, second],
        };
        all.iter()
            .map(|choices| Item(choices.iter().map(weighed).collect()))
            .collect()
    }

    /// Every combination, best first.
    fn by_hand(items: &[Item], needs: &[f64]) -> Vec<(f64, Solution)> {
        let mut all: Vec<Solution> = vec![Vec::new()];
        for item in items {
            let mut longer = Vec::new();
            for solution in &all {
                for choice in std::iter::once(None).chain((0..item.0.len()).map(Some)) {
                    longer.push([solution.as_slice(), &[choice]].concat());
                }
            }
            all = longer;
        }
        let holds = |solution: &Solution| {
            let saved = |budget| total(items, solution, |choice| choice.of(budget));
            needs
                .iter()
                .enumerate()
                .all(|(budget, need)| saved(budget) >= *need)
        };
        let mut found: Vec<(f64, Solution)> = all
            .into_iter()
            .filter(holds)
            .map(|solution| (total(items, &solution, |choice| choice.score), solution))
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    }

    fn random_items(seed: u64) -> Vec<Item> {
        let mut random = minitron_core::random::SplitMix::new(seed);
        let mut number = |most: usize| random.below(most) as f64;
        let mut all = Vec::new();
        for _ in 0..6 {
            let mut choices = Vec::new();
            for _ in 0..4 {
                choices.push(Weighed {
                    score: number(1000) / 997.0,
                    saved: vec![7.0 * number(40), number(50)],
                });
            }
            all.push(Item(choices));
        }
        all
    }

    #[test]
    fn one_budget_is_solved_exactly_and_the_next_best_follow() {
        for seed in 0..20 {
            let items = random_items(seed);
            for need in [0.0, 1.0, 250.0, 700.0, 1200.0] {
                let found = cheapest(&items, &[need], 3);
                let expected = by_hand(&items, &[need]);
                let score = |solution| total(&items, solution, |choice| choice.score);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((score(found) - expected.0).abs() < 1e-9, "{seed} {need}");
                }
                assert_eq!(found.len(), expected.len().min(3));
            }
        }
    }

    #[test]
    fn a_second_budget_holds_and_costs_little_more_than_the_best() {
        for seed in 0..20 {
            let items = random_items(seed);
            let needs = [500.0, 150.0];
            let (found, expected) = (cheapest(&items, &needs, 1), by_hand(&items, &needs));
            let Some(best) = expected.first() else {
                assert!(found.is_empty());
                continue;
            };
            let saved = total(&items, &found[0], |choice| choice.of(1));
            let score = total(&items, &found[0], |choice| choice.score);
            assert!(saved >= needs[1] && score >= best.0 - 1e-9);
            // The multiplier finds solutions on the convex hull alone.
            assert!(score <= best.0 + 1.0, "{seed}: {score} {}", best.0);
        }
    }

    #[test]
    fn what_cannot_be_saved_has_no_solution_and_nothing_to_save_costs_nothing() {
        let items = items(&[&[(0.5, 10.0, 1.0)], &[(0.1, 5.0, 1.0)]]);
        assert!(cheapest(&items, &[16.0], 4).is_empty());
        assert_eq!(cheapest(&items, &[-3.0], 1), [vec![None, None]]);
        assert_eq!(cheapest(&items, &[5.5], 1), [vec![Some(0), None]]);
    }
}
