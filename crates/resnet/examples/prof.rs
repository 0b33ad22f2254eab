use resnet::arch::{Network, initial_state};
use resnet_native::*;
use std::collections::BTreeMap;
fn main(){
  let model=std::env::args().nth(1).unwrap_or("resnet20".into());
  let net=Network::named(&model).unwrap(); let g=net.graph().unwrap();
  let st=initial_state(&net,0).unwrap();
  let mut s=Session::new(&g,Options{threads:std::env::var("T").map_or(0,|t|t.parse().unwrap()),isa:None,precision:Precision::Bf16}).unwrap();
  for i in 0..s.tensors().len(){let n=s.tensors()[i].spec.name.clone(); s.set_values(i,st.get(&n).unwrap().data());}
  let n=128; let x:Vec<f32>=(0..n*3072).map(|i| (i*7919%1013) as f32/506.0-1.0).collect(); let y:Vec<u32>=(0..n).map(|i|(i%10) as u32).collect();
  let mut acc:BTreeMap<(Work,Option<usize>),Vec<f64>>=BTreeMap::new();
  let mut tot=vec![];
  for it in 0..80{ let t=std::time::Instant::now(); s.forward_backward(&x,&y,0.0).unwrap(); s.apply(&Update::Sgd{lr:0.0,momentum:0.9,weight_decay:1e-4}); tot.push(t.elapsed().as_secs_f64()*1e3); if it>5{for p in s.profile(){acc.entry((p.work,p.node)).or_default().push(p.time.as_secs_f64()*1e6);}}}
  tot.sort_by(f64::total_cmp); println!("median step {:.2} ms",tot[40]);
  let mut sums:BTreeMap<(Work,String),(f64,usize)>=BTreeMap::new();
  for ((w,n),mut v) in acc{v.sort_by(f64::total_cmp);let m=v[v.len()/2];
    let key=match n{None=>"".to_string(),Some(n)=>{let nd=&g.nodes()[n]; format!("{:?} {:?}<-{:?}",match nd.op{Op::Conv{kernel,stride,..}=>format!("conv{kernel}s{stride}"),ref o=>format!("{o:?}")},nd.output,g.input_of(nd))}};
    let e=sums.entry((w,key)).or_default(); e.0+=m;e.1+=1;}
  for ((w,k),(t,c)) in sums{println!("{w:?} {k}: {t:.0} us total, {c} x {:.0}",t/c as f64);}
}
