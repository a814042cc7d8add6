//! Linear assignment: each row gets a column of its own, so that the sum is largest.

use minitron_core::error::{Present, Result};

/// A column, and how a search for a free one got there.
struct Column {
    price: f64,
    /// The row that has it.
    row: Option<usize>,
    /// Least reduced cost of getting here from what the search has reached.
    cost: f64,
    /// The column that it comes from; none for the row that the search began with.
    from: Option<usize>,
    is_reached: bool,
}

/// The column of each row that maximises Σ scores\[row\]\[column\], of n × n scores, row by row:
/// shortest augmenting paths with prices, exact, n³ steps at most (Kuhn 1955; Jonker and Volgenant
/// 1987). Among equals the first column is taken.
///
/// # Errors
/// `Internal` for scores that are not finite.
pub(super) fn best_assignment(scores: &[f64], n: usize) -> Result<Vec<usize>> {
    let mut row_prices = vec![0.0; n];
    let free = || Column {
        price: 0.0,
        row: None,
        cost: f64::INFINITY,
        from: None,
        is_reached: false,
    };
    let mut columns: Vec<Column> = std::iter::repeat_with(free).take(n).collect();
    for row in 0..n {
        let end = path_from(row, scores, &mut columns, &mut row_prices)?;
        swap_along(row, end, &mut columns)?;
    }
    let mut found = vec![0; n];
    for (idx, column) in columns.iter().enumerate() {
        let row = column.row.present("a row of each column")?;
        *found.get_mut(row).present("a row of scores")? = idx;
    }
    Ok(found)
}

/// The free column that is cheapest to reach from a row, over rows that give theirs up.
fn path_from(
    first: usize,
    scores: &[f64],
    columns: &mut [Column],
    row_prices: &mut [f64],
) -> Result<usize> {
    let n = columns.len();
    for column in &mut *columns {
        (column.cost, column.from, column.is_reached) = (f64::INFINITY, None, false);
    }
    let (mut row, mut from) = (first, None);
    loop {
        let of_row = scores.get(row * n..(row + 1) * n);
        let of_row = of_row.present("a row of scores")?;
        let price = *row_prices.get(row).present("a row's price")?;
        let (mut least, mut next) = (f64::INFINITY, None);
        for (idx, (column, score)) in columns.iter_mut().zip(of_row).enumerate() {
            if column.is_reached {
                continue;
            }
            let cost = -score - price - column.price;
            if cost < column.cost {
                (column.cost, column.from) = (cost, from);
            }
            if column.cost < least {
                (least, next) = (column.cost, Some(idx));
            }
        }
        let next = next.present("a cheapest column: scores are finite")?;
        *row_prices.get_mut(first).present("a row's price")? += least;
        for column in &mut *columns {
            match column.row.filter(|_| column.is_reached) {
                Some(row) => {
                    *row_prices.get_mut(row).present("a row's price")? += least;
                    column.price -= least;
                }
                None => column.cost -= least,
            }
        }
        let column = columns.get_mut(next).present("a column")?;
        column.is_reached = true;
        match column.row {
            None => return Ok(next),
            Some(taken) => (row, from) = (taken, Some(next)),
        }
    }
}

/// Gives every row on the path to a free column the next one.
fn swap_along(first: usize, end: usize, columns: &mut [Column]) -> Result<()> {
    let mut place = Some(end);
    while let Some(idx) = place {
        let from = columns.get(idx).present("a column")?.from;
        let row = match from {
            Some(from) => columns.get(from).present("a column")?.row,
            None => Some(first),
        };
        columns.get_mut(idx).present("a column")?.row = row;
        place = from;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // Set-up: what fails here is the test's own fault.
    use super::*;

    fn sum(scores: &[f64], columns: &[usize]) -> f64 {
        let n = columns.len();
        let rows = columns.iter().enumerate();
        rows.map(|(row, column)| scores[row * n + column]).sum()
    }

    /// The largest sum of all permutations.
    fn largest(scores: &[f64], n: usize, taken: &mut Vec<usize>) -> f64 {
        if taken.len() == n {
            return sum(scores, taken);
        }
        let mut best = f64::NEG_INFINITY;
        for column in 0..n {
            if !taken.contains(&column) {
                taken.push(column);
                best = best.max(largest(scores, n, taken));
                taken.pop();
            }
        }
        best
    }

    #[test]
    fn it_is_the_best_of_all_permutations() {
        let mut random = minitron_core::random::SplitMix::new(7);
        for round in 0..600 {
            let n = round % 7;
            // Few values make ties; large ones, rounding.
            let scale = [1.0, 3.0, 1e6][round % 3];
            let scores: Vec<f64> = (0..n * n)
                .map(|_| {
                    let x = random.below(2001) as f64 / 1000.0 - 1.0;
                    if scale == 3.0 {
                        (x * scale).round()
                    } else {
                        x * scale
                    }
                })
                .collect();
            let found = best_assignment(&scores, n).unwrap();
            let mut sorted = found.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let (got, best) = (sum(&scores, &found), largest(&scores, n, &mut Vec::new()));
            assert!(
                (got - best).abs() <= 1e-9 * scale,
                "{scores:?}: {got} of {best}"
            );
        }
    }

    #[test]
    fn a_permutation_is_found_again_and_equals_keep_their_order() {
        let n = 50;
        let order: Vec<usize> = (0..n).map(|row| row * 7 % n).collect();
        let mut scores = vec![0.0; n * n];
        for (row, column) in order.iter().enumerate() {
            scores[row * n + column] = 1.0;
        }
        assert_eq!(best_assignment(&scores, n).unwrap(), order);
        let all_alike = best_assignment(&vec![0.5; n * n], n).unwrap();
        assert_eq!(all_alike, (0..n).collect::<Vec<_>>());
    }

    #[test]
    fn scores_that_are_not_finite_end_in_an_error() {
        assert!(best_assignment(&[f64::NAN], 1).is_err());
        assert!(best_assignment(&[1.0, f64::NEG_INFINITY, 1.0, f64::NEG_INFINITY], 2).is_err());
    }
}
