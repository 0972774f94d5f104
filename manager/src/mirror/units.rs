//! Units of UCUM as Home Assistant writes them, with the device class that goes with them. Pure.
//!
//! Only pairs that its sensor component accepts: a class with a unit it does not know makes the sensor fail.

/// How a sensor looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looks<'a> {
    pub unit: Option<&'a str>,
    pub device_class: Option<&'static str>,
    pub state_class: &'static str,
}

/// UCUM, Home Assistant's word, and the class that fits whatever the metric is called.
const UNITS: &[(&str, &str, Option<&str>)] = &[
    ("Cel", "°C", Some("temperature")),
    ("[degF]", "°F", Some("temperature")),
    ("K", "K", Some("temperature")),
    ("Pa", "Pa", Some("pressure")),
    ("hPa", "hPa", Some("pressure")),
    ("kPa", "kPa", Some("pressure")),
    ("bar", "bar", Some("pressure")),
    ("mbar", "mbar", Some("pressure")),
    ("V", "V", Some("voltage")),
    ("mV", "mV", Some("voltage")),
    ("A", "A", Some("current")),
    ("mA", "mA", Some("current")),
    ("W", "W", Some("power")),
    ("kW", "kW", Some("power")),
    ("MW", "MW", Some("power")),
    ("V.A", "VA", Some("apparent_power")),
    ("W.h", "Wh", Some("energy")),
    ("kW.h", "kWh", Some("energy")),
    ("MW.h", "MWh", Some("energy")),
    ("Hz", "Hz", Some("frequency")),
    ("kHz", "kHz", Some("frequency")),
    ("MHz", "MHz", Some("frequency")),
    ("GHz", "GHz", Some("frequency")),
    ("lx", "lx", Some("illuminance")),
    ("W/m2", "W/m²", Some("irradiance")),
    ("dB[mW]", "dBm", Some("signal_strength")),
    ("ms", "ms", Some("duration")),
    ("s", "s", Some("duration")),
    ("min", "min", Some("duration")),
    ("h", "h", Some("duration")),
    ("d", "d", Some("duration")),
    ("bit", "bit", Some("data_size")),
    ("By", "B", Some("data_size")),
    ("kBy", "kB", Some("data_size")),
    ("MBy", "MB", Some("data_size")),
    ("GBy", "GB", Some("data_size")),
    ("KiBy", "KiB", Some("data_size")),
    ("MiBy", "MiB", Some("data_size")),
    ("GiBy", "GiB", Some("data_size")),
    ("bit/s", "bit/s", Some("data_rate")),
    ("kbit/s", "kbit/s", Some("data_rate")),
    ("Mbit/s", "Mbit/s", Some("data_rate")),
    ("By/s", "B/s", Some("data_rate")),
    ("kBy/s", "kB/s", Some("data_rate")),
    ("MBy/s", "MB/s", Some("data_rate")),
    ("mm", "mm", Some("distance")),
    ("cm", "cm", Some("distance")),
    ("m", "m", Some("distance")),
    ("km", "km", Some("distance")),
    ("m/s", "m/s", Some("speed")),
    ("km/h", "km/h", Some("speed")),
    ("mg", "mg", Some("weight")),
    ("g", "g", Some("weight")),
    ("kg", "kg", Some("weight")),
    ("mL", "mL", Some("volume_storage")),
    ("L", "L", Some("volume_storage")),
    ("m3", "m³", Some("volume_storage")),
    ("m3/h", "m³/h", Some("volume_flow_rate")),
    ("L/min", "L/min", Some("volume_flow_rate")),
    ("%", "%", None),
    ("[ppm]", "ppm", None),
    ("[ppb]", "ppb", None),
    ("ug/m3", "µg/m³", None),
    ("dB", "dB", None),
    ("deg", "°", None),
    ("mW", "mW", None),
];

/// Classes that the name of the metric tells: Home Assistant's unit, a part of the name, the class. The first counts.
const NAMED: &[(&str, &str, &str)] = &[
    ("%", "humidity", "humidity"),
    ("%", "moisture", "moisture"),
    ("%", "battery", "battery"),
    ("ppm", "co2", "carbon_dioxide"),
    ("ppm", "voc", "volatile_organic_compounds_parts"),
    ("ppb", "voc", "volatile_organic_compounds_parts"),
    ("µg/m³", "pm2.5", "pm25"),
    ("µg/m³", "pm25", "pm25"),
    ("µg/m³", "pm10", "pm10"),
    ("µg/m³", "pm1", "pm1"),
    ("dB", "rssi", "signal_strength"),
    ("dB", "signal", "signal_strength"),
    ("m/s", "wind", "wind_speed"),
    ("km/h", "wind", "wind_speed"),
];

/// How the sensor of a metric with a unit in UCUM looks. A unit that is not known is shown as it is.
pub(super) fn looks<'a>(metric: &str, unit: Option<&'a str>) -> Looks<'a> {
    // `1` is UCUM's word for no unit.
    let Some(unit) = unit.filter(|unit| !matches!(*unit, "" | "1")) else {
        return Looks { unit: None, device_class: None, state_class: "measurement" };
    };
    let known = UNITS.iter().find(|(ucum, ..)| *ucum == unit);
    let (unit, class) = known.map_or((unit, None), |(_, theirs, class)| (*theirs, *class));
    let metric = metric.to_ascii_lowercase();
    let named = NAMED.iter().find(|(of, part, _)| *of == unit && metric.contains(part));
    let device_class = named.map(|(.., class)| *class).or(class);
    // Energy is a sum to Home Assistant; it refuses it as a measurement.
    let state_class = if device_class == Some("energy") { "total" } else { "measurement" };
    Looks { unit: Some(unit), device_class, state_class }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_classes_go_together() {
        let looks = |metric, unit| {
            let looks = looks(metric, unit);
            (looks.unit, looks.device_class, looks.state_class)
        };
        assert_eq!(looks("t", Some("Cel")), (Some("°C"), Some("temperature"), "measurement"));
        assert_eq!(looks("Relative humidity", Some("%")), (Some("%"), Some("humidity"), "measurement"));
        assert_eq!(looks("cpu_percent", Some("%")), (Some("%"), None, "measurement"));
        assert_eq!(looks("meter", Some("kW.h")), (Some("kWh"), Some("energy"), "total"));
        assert_eq!(looks("wind", Some("m/s")), (Some("m/s"), Some("wind_speed"), "measurement"));
        assert_eq!(looks("pm10", Some("ug/m3")), (Some("µg/m³"), Some("pm10"), "measurement"));
        assert_eq!(looks("x", Some("furlong")), (Some("furlong"), None, "measurement"));
        assert_eq!(looks("count", Some("1")), (None, None, "measurement"));
    }

    #[test]
    fn a_named_class_is_of_a_unit_that_is_known() {
        for (unit, ..) in NAMED {
            assert!(UNITS.iter().any(|(_, theirs, _)| theirs == unit), "{unit}");
        }
    }
}
