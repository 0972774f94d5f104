//! Units as boards in the field write them, in UCUM.

/// The UCUM unit that a board means by `text`. What is not known passes as it is, so UCUM stays UCUM.
#[must_use]
pub fn ucum(text: &str) -> &str {
    match text.trim() {
        "C" | "°C" | "celsius" | "Celsius" | "degC" => "Cel",
        "F" | "°F" | "fahrenheit" | "Fahrenheit" | "degF" => "[degF]",
        "percent" | "%RH" | "RH%" => "%",
        "lux" => "lx",
        "ppm" => "[ppm]",
        "ppb" => "[ppb]",
        "dBm" => "dB[mW]",
        "µg/m³" | "µg/m3" | "ug/m³" => "ug/m3",
        "m³" => "m3",
        "W/m²" => "W/m2",
        "VA" => "V.A",
        "Wh" => "W.h",
        "kWh" => "kW.h",
        "sec" | "seconds" => "s",
        "volt" | "volts" => "V",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_the_field_are_told_in_ucum_and_those_of_ucum_stay() {
        for (field, expected) in
            [("C", "Cel"), ("°F", "[degF]"), (" lux ", "lx"), ("dBm", "dB[mW]"), ("furlong", "furlong")]
        {
            assert_eq!(ucum(field), expected);
            assert_eq!(ucum(expected), expected, "twice is once");
        }
    }
}
