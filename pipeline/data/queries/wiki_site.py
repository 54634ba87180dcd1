"""What the links of a wiki mean: the names of its namespaces, and the prefixes of Wikipedias in other languages.

A dump names the namespaces of its wiki in <siteinfo>, at the beginning of its first part. The English names are valid
in every wiki. <siteinfo> leaves out the aliases of a namespace, so those of File and Category are in a table here, by
language, from MediaWiki's languages/messages/Messages*.php ($namespaceNames and $namespaceAliases). A link is also a
file link if its target ends in the suffix of a media file, in any language.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from html import unescape

FILE_KEYS, CATEGORY_KEY = ("-2", "6"), "14"
"""Numbers of the namespaces Media and File, and Category."""
_CANONICAL = "media file image category"
_ALIASES = {
    "af": "Beeld Lêer Kategorie",
    "an": "Imachen Imagen Archivo Categoría",
    "ar": "صورة ملف تصنيف",
    "arz": "صورة ملف تصنيف",
    "ast": "Imaxen Imaxe Ficheru Categoría",
    "az": "Şəkil Fayl Kateqoriya",
    "ba": "Рәсем Файл Категория Төркөм",
    "be": "Выява Файл Катэгорыя",
    "bg": "Картинка Файл Категория",
    "bn": "চিত্র বিষয়শ্রেণী",
    "br": "Skeudenn Restr Rummad",
    "bs": "Slika Datoteka Kategorija",
    "ca": "Imatge Fitxer Categoria",
    "ce": "Сурт Файл Категори",
    "ckb": "وێنە پەڕگە پۆل",
    "cs": "Soubor Obrázek Kategorie",
    "cv": "Ӳкерчĕк Файл Категори",
    "cy": "Delwedd Categori",
    "da": "Billede Fil Kategori",
    "de": "Bild Datei Kategorie",
    "el": "Εικόνα Αρχείο Κατηγορία",
    "eo": "Dosiero Kategorio",
    "es": "Imagen Archivo Categoría",
    "et": "Pilt Fail Kategooria",
    "eu": "Irudi Fitxategi Kategoria",
    "fa": "تصویر پرونده رده",
    "fi": "Kuva Tiedosto Luokka",
    "fo": "Mynd Bólkur",
    "fr": "Fichier Catégorie",
    "ga": "Íomhá Catagóir",
    "gl": "Imaxe Ficheiro Arquivo Categoría",
    "he": "תמונה קובץ קטגוריה",
    "hi": "चित्र श्रेणी",
    "hr": "Slika Datoteka Kategorija",
    "hu": "Kép Fájl Kategória",
    "hy": "Նկար Պատկեր Կատեգորիա",
    "id": "Gambar Berkas Kategori",
    "is": "Mynd Flokkur",
    "it": "Immagine Categoria",
    "ja": "画像 ファイル カテゴリ",
    "ka": "სურათი ფაილი კატეგორია",
    "kk": "Сурет Файл Санат",
    "ko": "그림 파일 분류",
    "ku": "Wêne Kategorî",
    "ky": "Сүрөт Файл Категория",
    "la": "Imago Fasciculus Categoria",
    "lb": "Bild Fichier Kategorie",
    "lt": "Vaizdas Kategorija",
    "lv": "Attēls Kategorija",
    "mk": "Слика Податотека Категорија",
    "ml": "ചിത്രം പ്രമാണം വർഗ്ഗം",
    "mr": "चित्र वर्ग",
    "ms": "Imej Fail Kategori",
    "nb": "Bilde Fil Kategori",
    "nds": "Bild Kategorie",
    "nl": "Afbeelding Bestand Categorie",
    "nn": "Bilde Fil Kategori",
    "no": "Bilde Fil Kategori",
    "oc": "Imatge Fichièr Categoria",
    "pl": "Grafika Plik Kategoria",
    "pt": "Imagem Ficheiro Arquivo Categoria",
    "ro": "Imagine Fișier Fişier Categorie",
    "ru": "Изображение Файл Категория К",
    "sh": "Slika Datoteka Слика Датотека Kategorija Категорија",
    "sk": "Obrázok Súbor Kategória",
    "sl": "Slika Kategorija",
    "sq": "Figura Skeda Kategoria Kategori",
    "sr": "Слика Slika Датотека Datoteka Категорија Kategorija",
    "sv": "Bild Fil Kategori",
    "ta": "படிமம் பகுப்பு",
    "te": "బొమ్మ దస్త్రం వర్గం",
    "th": "ภาพ ไฟล์ หมวดหมู่",
    "tr": "Resim Dosya Kategori",
    "tt": "Рәсем Файл Төркем",
    "uk": "Зображення Файл Категорія",
    "ur": "تصویر فائل ملف زمرہ",
    "uz": "Tasvir Fayl Turkum Kategoriya",
    "vi": "Hình Tập_tin Thể_loại",
    "yi": "בילד טעקע קאטעגאריע",
    "zh": "图像 圖像 图片 圖片 文件 檔案 档案 分类 分類",
    "zh-yue": "圖 圖像 檔 檔案 分類 类 類",
}
"""Names of the namespaces File and Category by language; a blank separates them, an underscore is a blank in a name."""

_AMBIGUOUS = frozenset({"imagine", "imago", "figura", "к"})
"""Names in the table that begin titles of other languages; they are not used if the language of a dump is unknown."""

_CODES = """
aa ab ace ady af ak als alt am ami an ang anp ar arc ary arz as ast atj av avk awa ay az azb ba ban bar bat-smg bbc
bcl bdr be be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bpy br bs btm bug bxr ca cbk-zam cdo ce ceb ch cho chr chy
ckb cmn co cr crh cs csb cu cv cy cz da dag de dga din diq dk dsb dtp dty dv dz ee egl el eml en eo epo es et eu ext
fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got gpe gsw gu guc gur guw gv ha
hak haw he hi hif ho hr hsb ht hu hy hyw hz ia iba id ie ig igl ii ik ilo inh io is it iu ja jam jbo jp jv ka kaa kab
kbd kbp kcg kg kge ki kj kk kl km kn knc ko koi kr krc ks ksh ku kus kv kw ky la lad lb lbe lez lfn lg li lij lld lmo
ln lo lrc lt ltg lv lzh mad mai map-bms mdf mg mh mhr mi min minnan mk ml mn mni mnw mo mos mr mrj ms mt mus mwl my
myv mzn na nah nan nap nb nds nds-nl ne new ng nia nl nn no nov nqo nr nrm nso nup nv ny oc olo om or os pa pag pam
pap pcd pcm pdc pfl pi pih pl pms pnb pnt ps pt pwn qu rki rm rmy rn ro roa-rup roa-tara rsk ru rue rup rw sa sah sat
sc scn sco sd se sg sgs sh shi shn shy si simple sk skr sl sm smn sn so sq sr srn ss st stq su sv sw syl szl szy ta
tay tcy tdd te tet tg th ti tig tk tl tly tn to tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo
vro wa war wo wuu xal xh xmf yi yo yue za zea zgh zh zh-cfr zh-classical zh-cn zh-min-nan zh-tw zh-yue zu
"""
LANGUAGES = frozenset(_CODES.split())
"""Prefixes of Wikipedias in other languages: Wikimedia's langlist (operations/mediawiki-config), newer Wikipedias, and
the old codes that MediaWiki still resolves (dk, jp, cz, nb, epo, minnan, zh-cn, zh-tw, zh-cfr)."""

_MEDIA_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".svg", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".xcf", ".pdf", ".djvu"),
    *(".ogg", ".oga", ".ogv", ".opus", ".webm", ".wav", ".mp3", ".flac", ".mid", ".midi", ".mpg", ".mpeg", ".mp4"),
)
_MAX_HEAD = 10_000
"""Characters before <siteinfo> in which <mediawiki> is looked for."""
_NAMESPACE = re.compile(r"<namespace\b([^<>]*+)>([^<]{0,300}+)</namespace>")
_KEY = re.compile(r"""\bkey\s*+=\s*+["'](-?\d{1,6})["']""")
_CASE = re.compile(r"<case>\s*+([a-z-]{1,40})")
_DBNAME = re.compile(r"<dbname>\s*+([A-Za-z0-9_-]{1,60})")
_LANGUAGE = re.compile(r"""<mediawiki\b[^<>]*?\bxml:lang\s*=\s*["']([A-Za-z0-9-]{1,40})["']""")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]")
"""Marks of writing direction and signs without a width; MediaWiki removes them from titles."""


def fold_name(name: str) -> str:
    """A namespace's name as MediaWiki compares it: capitals and underscores make no difference."""
    name = unicodedata.normalize("NFC", _INVISIBLE.sub("", name))
    return " ".join(name.replace("_", " ").split()).lower()


_EVERY_NAME = frozenset(fold_name(name) for names in (_CANONICAL, *_ALIASES.values()) for name in names.split())


@dataclass(frozen=True)
class Site:
    """The facts of a wiki that its markup depends on."""

    language: str = ""
    """Language code, such as "de"; empty if the dump does not say."""
    hidden: frozenset[str] = _EVERY_NAME - _AMBIGUOUS
    """Names, as from `fold_name`, of the namespaces whose links show no text: Media, File and Category. By default, the
    names that are unambiguous in all languages of the table."""
    named: bool = False
    """Whether the dump gives the names of its namespaces. Otherwise they are those of the table."""
    capital_titles: bool = True
    """Whether the first letter of a title is always a capital (<case>first-letter</case>)."""

    def hides(self, target: str) -> bool:
        """Whether a link to this target shows no text: a file, a category, or the same page in another language.

        Args:
            target: what precedes the first bar of a link. A colon in front makes a plain link of it, as in MediaWiki.
        """
        prefix, colon, name = target.partition(":")
        if not colon:
            return False
        prefix = fold_name(prefix)
        return prefix != "" and (
            prefix in self.hidden or prefix in LANGUAGES or name.rstrip().lower().endswith(_MEDIA_SUFFIXES)
        )


def read_siteinfo(xml: str) -> Site:
    """The facts in the beginning of a dump, from <mediawiki> to </siteinfo>, as far as they are there."""
    start, end = xml.find("<siteinfo"), xml.find("</siteinfo>")
    head = xml[: start if 0 <= start < _MAX_HEAD else _MAX_HEAD]
    info = xml[start:end] if 0 <= start < end else ""
    named_language, database = _LANGUAGE.search(head), _DBNAME.search(info)
    language = named_language[1].lower() if named_language else ""
    if not language and database and database[1].endswith("wiki"):
        language = database[1].removesuffix("wiki").replace("_", "-").lower()
    names = [(key[1], text) for attributes, text in _NAMESPACE.findall(info) if (key := _KEY.search(attributes))]
    local = {fold_name(unescape(text)) for key, text in names if key in (*FILE_KEYS, CATEGORY_KEY)}
    case = _CASE.search(info)
    site = Site(language=language, named=bool(local - {""}), capital_titles=not case or case[1] == "first-letter")
    aliases = _ALIASES.get(language, _ALIASES.get(language.partition("-")[0]))
    if aliases is None and not site.named:
        return site
    return replace(
        site, hidden=frozenset({*_CANONICAL.split(), *local, *map(fold_name, (aliases or "").split())} - {""})
    )
