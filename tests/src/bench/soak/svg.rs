//! Curves as a picture: one above the other, on one axis of time.

use std::fmt::Write as _;

use super::{Curve, Soak};

/// Width of a curve and its labels, height of a curve, room between two, in pixels.
const WIDTH: f64 = 720.0;
const LABELS: f64 = 230.0;
const HEIGHT: f64 = 44.0;
const GAP: f64 = 16.0;

/// The figures as a picture in SVG.
pub(super) fn draw(figures: &Soak) -> String {
    let height = GAP + figures.curves.iter().map(|_| HEIGHT + GAP).sum::<f64>();
    let width = LABELS + WIDTH + GAP;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = GAP;
    for curve in &figures.curves {
        one(&mut picture, curve, top, figures.seconds);
        top += HEIGHT + GAP;
    }
    picture + "</svg>\n"
}

fn one(picture: &mut String, curve: &Curve, top: f64, seconds: f64) {
    let ((begin, end), (_, most)) = (curve.ends(), curve.range());
    let colour = if curve.holds() { "#1b7f4d" } else { "#c0392b" };
    let (x, y) = (
        |at: f64| LABELS + at / seconds.max(f64::MIN_POSITIVE) * WIDTH,
        // From nothing: what is small beside the most is to look small.
        |value: f64| top + HEIGHT - value / most.max(1.0) * HEIGHT,
    );
    // Writing to a String cannot fail.
    let _ = writeln!(picture, "<text x=\"8\" y=\"{:.0}\">{}</text>", top + 16.0, curve.name);
    let _ = writeln!(
        picture,
        "<text x=\"8\" y=\"{:.0}\" fill=\"{colour}\">{begin:.0} → {end:.0}, most {most:.0}</text>",
        top + 34.0
    );
    let base = y(begin);
    let _ = writeln!(
        picture,
        "<path d=\"M{LABELS} {base:.1}H{:.0}\" stroke=\"#bbb\" stroke-dasharray=\"4 4\"/>",
        LABELS + WIDTH
    );
    let points: Vec<String> =
        curve.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
    let _ =
        writeln!(picture, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", points.join(" "));
}

#[cfg(test)]
mod tests {
    use super::super::pod::Deeds;
    use super::super::tests::curve;
    use super::*;

    #[test]
    fn each_curve_has_its_line_and_its_figures() {
        let curves = vec![curve(&[0.0, 4.0]), curve(&[1.0, 1.0])];
        let picture =
            draw(&Soak { seed: 1, pods: 2, seconds: 4.0, deeds: Deeds::default(), curves, left: Vec::new() });
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert!(picture.contains("0 → 4, most 4"), "{picture}");
        assert!(picture.contains("230.0,60.0 950.0,16.0"), "from corner to corner: {picture}");
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
