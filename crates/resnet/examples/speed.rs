use resnet::arch::{Network, initial_state};
use resnet::engine::*;
fn main() {
    let name = std::env::args().nth(1).unwrap_or("resnet20".into());
    let threads = std::env::args().nth(2).and_then(|t| t.parse().ok()).unwrap_or(0);
    let net = Network::named(&name).unwrap();
    let mut e = Native::new(&net, &initial_state(&net, 0).unwrap(), NativeOptions { threads }).unwrap();
    let n = 128;
    let batch = Batch {
        images: (0..n * 3072).map(|i| ((i * 7919 % 1013) as f32 / 500.0) - 1.0).collect(),
        labels: (0..n as u32).map(|i| i % 10).collect(),
    };
    println!("{}", e.describe());
    let mut t = Vec::new();
    for i in 0..25 {
        let s = std::time::Instant::now();
        let o = e.forward_backward(&batch, &Loss::default()).unwrap();
        let mid = s.elapsed();
        e.apply(&Update::Sgd { lr: 0.05, momentum: 0.9, weight_decay: 1e-4 });
        t.push(s.elapsed().as_secs_f64());
        if i % 6 == 0 {
            println!("{i} loss {} {:?}", o.loss, mid);
        }
    }
    t.sort_by(f64::total_cmp);
    println!("{:.1} img/s median, {:.2} ms", n as f64 / t[t.len() / 2], t[t.len() / 2] * 1e3);
}
