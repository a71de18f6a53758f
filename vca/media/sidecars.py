"""Which subtitle files beside the videos belong to which video, and in which language they are: told by their names."""

import re

SIDECAR_EXTENSIONS = frozenset({"srt", "vtt", "ass", "ssa", "ttml", "dfxp"})
MAX_SIDECAR_SUFFIXES = 3
"""film.en.forced.sdh.srt: more dots than that belong to the name."""


def media_stem(key: str) -> str:
    """The key without its extension: what `sidecar_stems` is joined with."""
    folder, slash, name = key.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot and stem else name)


def sidecar_stems(key: str) -> list[str]:
    """Stems of the media that a sidecar may belong to, most specific first.

    "a/film.en.forced.srt" gives "a/film.en.forced", "a/film.en", "a/film". A sidecar belongs to the media of the same
    folder whose `media_stem` is the first of these that exists (all of them, if film.mp4 lies beside film.mkv). So
    "film.part2.srt" goes to film.part2.mp4 where there is one, else to film.mp4.
    """
    stem = media_stem(key)
    folder, slash, name = stem.rpartition("/")
    stems = [stem]
    for _ in range(MAX_SIDECAR_SUFFIXES):
        name = name.rpartition(".")[0]
        if not name:
            break
        stems.append(folder + slash + name)
    return stems


# ISO 639-1 codes with their three-letter forms (639-2/T, and /B where it differs). Not every two or three letters are
# a language: film.cut.srt, film.raw.srt, film.sdh.srt.
_ISO_639 = """
aa aar  ab abk  ae ave  af afr  ak aka  am amh  an arg  ar ara  as asm  av ava  ay aym  az aze  ba bak  be bel  bg bul
bi bis  bm bam  bn ben  bo bod/tib  br bre  bs bos  ca cat  ce che  ch cha  co cos  cr cre  cs ces/cze  cu chu  cv chv
cy cym/wel  da dan  de deu/ger  dv div  dz dzo  ee ewe  el ell/gre  en eng  eo epo  es spa  et est  eu eus/baq
fa fas/per  ff ful  fi fin  fj fij  fo fao  fr fra/fre  fy fry  ga gle  gd gla  gl glg  gn grn  gu guj  gv glv  ha hau
he heb  hi hin  ho hmo  hr hrv  ht hat  hu hun  hy hye/arm  hz her  ia ina  id ind  ie ile  ig ibo  ii iii  ik ipk
io ido  is isl/ice  it ita  iu iku  ja jpn  jv jav  ka kat/geo  kg kon  ki kik  kj kua  kk kaz  kl kal  km khm  kn kan
ko kor  kr kau  ks kas  ku kur  kv kom  kw cor  ky kir  la lat  lb ltz  lg lug  li lim  ln lin  lo lao  lt lit  lu lub
lv lav  mg mlg  mh mah  mi mri/mao  mk mkd/mac  ml mal  mn mon  mr mar  ms msa/may  mt mlt  my mya/bur  na nau  nb nob
nd nde  ne nep  ng ndo  nl nld/dut  nn nno  no nor  nr nbl  nv nav  ny nya  oc oci  oj oji  om orm  or ori  os oss
pa pan  pi pli  pl pol  ps pus  pt por  qu que  rm roh  rn run  ro ron/rum  ru rus  rw kin  sa san  sc srd  sd snd
se sme  sg sag  si sin  sk slk/slo  sl slv  sm smo  sn sna  so som  sq sqi/alb  sr srp  ss ssw  st sot  su sun  sv swe
sw swa  ta tam  te tel  tg tgk  th tha  ti tir  tk tuk  tl tgl  tn tsn  to ton  tr tur  ts tso  tt tat  tw twi  ty tah
ug uig  uk ukr  ur urd  uz uzb  ve ven  vi vie  vo vol  wa wln  wo wol  xh xho  yi yid  yo yor  za zha  zh zho/chi
zu zul  yue yue  cmn cmn  fil fil  haw haw  ceb ceb  gsw gsw
"""
_CODES = _ISO_639.split()
_LANGUAGES = {
    form: code for code, forms in zip(_CODES[::2], _CODES[1::2], strict=True) for form in (code, *forms.split("/"))
}
_LANGUAGE_TAG = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_]([a-z]{2}|[0-9]{3}))?", re.IGNORECASE)


def sidecar_language(video_key: str, sidecar_key: str) -> str | None:
    """The language that a sidecar's name declares: "film.en.srt" gives "en", "film.ger.forced.srt" "de",
    "film.pt_BR.srt" "pt-BR", "film.srt" None. ISO 639 with optional script and region (BCP 47), shortest form.
    """
    suffix = media_stem(sidecar_key).removeprefix(media_stem(video_key))
    for part in suffix.split("."):
        match = _LANGUAGE_TAG.fullmatch(part)
        language = _LANGUAGES.get(match[1].lower()) if match else None
        if match and language:
            script = match[2].title() if match[2] else None
            region = match[3].upper() if match[3] else None
            return "-".join(filter(None, (language, script, region)))
    return None
