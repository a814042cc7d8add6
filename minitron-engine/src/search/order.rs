//! Orders by loss, and how alike two of them are.

use std::cmp::Ordering;

/// Rank of every value, 1 for the lowest; equal values share the mean of their places.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut ranks = Vec::with_capacity(values.len());
    for value in values {
        let (mut n_below, mut n_equal) = (0.0, 0.0);
        for other in values {
            match other.total_cmp(value) {
                Ordering::Less => n_below += 1.0,
                Ordering::Equal => n_equal += 1.0,
                Ordering::Greater => {}
            }
        }
        ranks.push(n_below + (n_equal + 1.0) / 2.0);
    }
    ranks
}

/// Spearman's rank correlation: Pearson's of the ranks; none for fewer than two values, or where
/// all are equal.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let (mut cross, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a - mean_a, b - mean_b);
        cross += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    let rho = cross / (of_a * of_b).sqrt();
    (a.len() == b.len() && rho.is_finite()).then_some(rho)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Kendall's rank correlation τ-b; none for fewer than two values, or where all are equal.
pub fn kendall(a: &[f64], b: &[f64]) -> Option<f64> {
    let (mut agree, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for i in 0..a.len().min(b.len()) {
        for j in 0..i {
            let (in_a, in_b) = (sign(a[i], a[j]), sign(b[i], b[j]));
            agree += in_a * in_b;
            of_a += in_a * in_a;
            of_b += in_b * in_b;
        }
    }
    let tau = agree / f64::sqrt(of_a * of_b);
    (a.len() == b.len() && tau.is_finite()).then_some(tau)
}

/// Of the difference of two values.
fn sign(one: f64, other: f64) -> f64 {
    match one.total_cmp(&other) {
        Ordering::Less => -1.0,
        Ordering::Equal => 0.0,
        Ordering::Greater => 1.0,
    }
}

/// First index from which the order of all curves stays that of their ends; curves of equal length.
pub fn settled(curves: &[Vec<f64>]) -> Option<usize> {
    let n_points = curves.iter().map(Vec::len).min()?;
    let end = ranks_at(curves, n_points.checked_sub(1)?);
    (0..n_points)
        .rev()
        .take_while(|&point| ranks_at(curves, point) == end)
        .last()
}

fn ranks_at(curves: &[Vec<f64>], point: usize) -> Vec<f64> {
    let values: Vec<f64> = curves.iter().map(|curve| curve[point]).collect();
    ranks(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_compared_as_textbooks_do() {
        let (a, b) = (
            [
                106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0,
            ],
            [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0],
        );
        assert!((spearman(&a, &b).unwrap() + 0.175_757_575).abs() < 1e-6);
        assert!((kendall(&a, &b).unwrap() + 0.111_111_111).abs() < 1e-6);
        assert_eq!(spearman(&a, &a), Some(1.0));
        assert_eq!(ranks(&[3.0, 1.0, 3.0]), [2.5, 1.0, 2.5]);
        assert_eq!(
            (spearman(&[1.0], &[1.0]), kendall(&[2.0, 2.0], &[1.0, 3.0])),
            (None, None)
        );
    }

    #[test]
    fn an_order_settles_where_it_stops_changing() {
        let curves = [
            vec![3.0, 2.0, 1.0, 0.9],
            vec![2.0, 2.5, 2.0, 1.0],
            vec![4.0, 3.0, 3.0, 2.0],
        ];
        assert_eq!(settled(&curves), Some(1));
        assert_eq!(settled(&[]), None);
    }
}
